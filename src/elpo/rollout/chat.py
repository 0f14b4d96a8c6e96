"""Rollouts of a policy that speaks chat messages: turns, tools, limits and grading as over token ids.

A `Draw` of `elpo.algorithms.strategies.grow`, so every strategy runs on it unchanged. A rollout that an
infrastructure fault made unusable is None; why is told to `on_draw`.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from elpo.algorithms.strategies import RolloutRequest
from elpo.chat import ChatPolicy, ChatRequest, Completion, ContextTooLong
from elpo.interfaces import InfrastructureFault, Tool
from elpo.rollout.episode import MAX_MALFORMED_CALLS, Environment, Limits
from elpo.rollout.faults import InfrastructureError
from elpo.rollout.messages import calls_of, messages_of, recorded_outputs, turn_text
from elpo.rollout.plug_ins import graded
from elpo.rollout.tool_calls import MalformedCall, parse_tool_call
from elpo.tree import ROOT, RolloutTree
from elpo.types import MessageStep, Outcome, Problem, Step, StopReason, ToolCall, ToolResult, ToolStatus

Grade = Callable[[Problem, Sequence[Step], StopReason], Outcome]
Rollout = tuple[Sequence[Step], Outcome]
OnDraw = Callable[[int, "Rollout | str"], None]
"""(prefix, the rollout or why it was lost); called from many threads."""

MAX_LOST_IN_A_ROW = 8
"""Completions that could not be drawn, one after the other, before the endpoint counts as down."""


class Outage:
    """Tells a rollout that was lost from an endpoint that is down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_a_row = 0

    def record(self, fault: InfrastructureFault | None) -> None:
        """Count a completion that was drawn (None), or how it failed.

        Raises:
            InfrastructureError: too many failed in a row.
        """
        with self._lock:
            self._in_a_row = 0 if fault is None else self._in_a_row + 1
            if fault is not None and self._in_a_row >= MAX_LOST_IN_A_ROW:
                raise InfrastructureError(
                    f"{self._in_a_row} completions in a row failed; the latest: {fault}"
                )


@dataclass(frozen=True)
class ChatAgent:
    """A policy with its tools, its grader and its limits.

    Of `limits.max_tokens` as much is known as the endpoint reports: prompt and completion of the turns, not
    the feedback of the last one. A turn makes one call; further ones are dropped, from the history too.
    """

    policy: ChatPolicy
    model: str
    tools: Mapping[str, Tool]
    grade: Grade
    limits: Limits
    temperature: float
    seed: int
    outage: Outage

    def draw_with(self, threads: Executor, on_draw: OnDraw | None = None) -> ChatDraws:
        """What answers the requests for one tree, with rollouts side by side in `threads`."""
        return ChatDraws(self, threads, on_draw or (lambda prefix, ended: None))


class ChatDraws:
    """The `Draw` of one tree. Close it when the tree is finished.

    A branch starts from the tools as its prefix left them: the calls on the path are made again, except
    those of tools that keep no state. `differences` lists the nodes where they answered otherwise.
    """

    def __init__(self, agent: ChatAgent, threads: Executor, on_draw: OnDraw) -> None:
        self._agent = agent
        self._threads = threads
        self._on_draw = on_draw
        self._environments: dict[int, Environment] = {}
        self._drawn: Counter[int] = Counter()  # by prefix
        self.differences: list[int] = []

    def __call__(self, tree: RolloutTree, request: RolloutRequest) -> list[Rollout | None]:
        """See `elpo.algorithms.strategies.Draw`, and `rollouts` for errors."""
        return self.rollouts(tree, request.prefix, self.next_numbers(request.prefix, request.num_rollouts))

    def next_numbers(self, prefix: int, num: int) -> list[int]:
        """Numbers of rollouts from `prefix` that none of its rollouts has had yet."""
        first = self._drawn[prefix]
        self._drawn[prefix] += num
        return list(range(first, first + num))

    def rollouts(self, tree: RolloutTree, prefix: int, numbers: Sequence[int]) -> list[Rollout | None]:
        """The rollouts from `prefix` with these numbers. A number decides the seed: drawn again, a rollout
        asks the same, so that a policy that keeps its answers goes on where it was lost.

        Raises:
            InfrastructureError: the endpoint is down, or the tools are.
            ValueError: the endpoint refuses such requests.
        """
        path = [tree.nodes[node].step for node in tree.path(prefix)]
        environment = self._environment(tree, prefix)
        futures = []
        for number in numbers:
            entropy = (self._agent.seed, zlib.crc32(tree.problem.id.encode()), len(path), number)
            seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
            episode = _ChatEpisode(self._agent, tree.problem, path, environment, seed)
            futures.append(self._threads.submit(self._rollout, prefix, episode))
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Free the tools' sessions."""
        for environment in self._environments.values():
            environment.close()
        self._environments.clear()

    def _rollout(self, prefix: int, episode: _ChatEpisode) -> Rollout | None:
        try:
            with closing(episode):
                ended = episode.run()
        except InfrastructureFault as fault:
            self._on_draw(prefix, str(fault))
            return None
        self._on_draw(prefix, ended)
        return ended

    def _environment(self, tree: RolloutTree, node: int) -> Environment:
        """The tools after `node`."""
        if node not in self._environments:
            if node == ROOT:
                self._environments[node] = Environment.start(self._agent.tools, tree.problem)
                return self._environments[node]
            step = tree.nodes[node].step
            before = self._environment(tree, tree.nodes[node].parent)
            self._environments[node], outputs = self._replayed(before, step)
            if outputs is not None and outputs != recorded_outputs(step):
                self.differences.append(node)
        return self._environments[node]

    def _replayed(self, environment: Environment, step: Step) -> tuple[Environment, list[str] | None]:
        """The environment after the calls of a step, and what they answered; None where nothing was run."""
        outputs = None
        for call in calls_of(step):
            if getattr(self._agent.tools.get(call.name), "stateless", False):
                continue
            result, environment = environment.call(call)
            if result.status is ToolStatus.INFRASTRUCTURE_FAULT:
                raise InfrastructureError(f"a call of the trajectory could not be repeated: {result.output}")
            outputs = [*(outputs or ()), result.output]
        return environment, outputs


class _ChatEpisode:
    """One rollout, from a prefix to its end."""

    def __init__(
        self,
        agent: ChatAgent,
        problem: Problem,
        path: Sequence[Step],
        environment: Environment,
        seed: int,
    ) -> None:
        self._agent = agent
        self._problem = problem
        self._path = path
        self._limits = agent.limits.for_problem(problem)
        self._environment = self._given = environment
        self._opened: list[Environment] = []
        self._seed = seed
        self._messages = [*problem.messages, *(message for step in path for message in messages_of(step))]
        self._malformed = sum(step.tool_call is None and step.tool_result is not None for step in path)
        self._context = 0  # tokens, as far as reported
        self._steps: list[Step] = []

    def run(self) -> Rollout:
        """Take turns until the trajectory ends, then grade it.

        Raises:
            InfrastructureFault: it could not be drawn or graded.
        """
        stop = None
        while stop is None:
            stop = self._turn()
        steps = [*self._path, *self._steps]
        return self._steps, graded(self._agent.grade, self._problem, steps, stop)

    def close(self) -> None:
        """Free the sessions this rollout has opened; those of its prefix stay."""
        given = {id(session) for session in self._given.sessions.values()}
        for environment in self._opened:
            for session in environment.sessions.values():
                if id(session) not in given:
                    session.close()

    def _turn(self) -> StopReason | None:
        try:
            completion = self._complete()
        except ContextTooLong:
            return self._add(StopReason.TOKEN_LIMIT, Completion(""), [])
        message: dict[str, Any] = {"role": "assistant", "content": completion.content}
        if completion.calls:
            call = completion.calls[0]
            function = {"name": call.name, "arguments": call.arguments}
            message["tool_calls"] = [{"id": call.id, "type": "function", "function": function}]
        if completion.finish == "length":
            return self._add(StopReason.TOKEN_LIMIT, completion, [message])
        try:
            asked = _asked(completion)
        except MalformedCall as error:
            self._malformed += 1
            result = ToolResult(ToolStatus.MALFORMED_CALL, f"Error: malformed tool call: {error}")
            return self._add(self._limit(result), completion, [message], None, result)
        if asked is None:
            return self._add(StopReason.ANSWER, completion, [message])
        result, self._environment = self._environment.call(asked)
        self._opened.append(self._environment)
        if result.status is ToolStatus.INFRASTRUCTURE_FAULT:
            raise InfrastructureFault(f"the tool {asked.name} failed: {result.output}")
        return self._add(self._limit(result), completion, [message], asked, result)

    def _complete(self) -> Completion:
        limits, agent = self._limits, self._agent
        request = ChatRequest(
            model=agent.model,
            messages=tuple(self._messages),
            tools=tuple(tool.schema for tool in agent.tools.values()),
            max_tokens=max(1, min(limits.max_turn_tokens, limits.max_tokens - self._context)),
            temperature=agent.temperature,
            seed=(self._seed + len(self._path) + len(self._steps)) % (1 << 63),
        )
        try:
            completion = agent.policy.complete(request)
        except InfrastructureFault as fault:
            agent.outage.record(fault)
            raise
        agent.outage.record(None)
        self._context = (completion.prompt_tokens or 0) + (completion.completion_tokens or 0)
        return completion

    def _limit(self, result: ToolResult) -> StopReason | None:
        """Why no turn can follow this result; None where one can."""
        if self._malformed >= MAX_MALFORMED_CALLS:
            return StopReason.MALFORMED_CALLS
        if len(self._path) + len(self._steps) + 1 >= self._limits.max_turns:
            return StopReason.TURN_LIMIT
        return StopReason.TOKEN_LIMIT if self._context >= self._limits.max_tokens else None

    def _add(
        self,
        stop: StopReason | None,
        completion: Completion,
        messages: list[dict[str, Any]],
        call: ToolCall | None = None,
        result: ToolResult | None = None,
    ) -> StopReason | None:
        if result is not None:
            name = completion.calls[0].id if completion.calls else "call_0"
            messages.append({"role": "tool", "tool_call_id": name, "content": result.output})
        text = turn_text(completion.content, completion.calls[:1])
        tokens = completion.completion_tokens or 0
        self._steps.append(MessageStep.of(messages, tokens, text, call, result))
        self._messages += messages
        return stop


def _asked(completion: Completion) -> ToolCall | None:
    """The call a turn makes; None where it makes none. Calls left in the text count, as some servers do.

    Raises:
        MalformedCall: it is not one that could be run; the message is shown to the policy.
    """
    if not completion.calls:
        return parse_tool_call(completion.content)
    call = completion.calls[0]
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise MalformedCall(f"the arguments are not valid JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise MalformedCall('"arguments" must be an object')
    return ToolCall(call.name, arguments)
