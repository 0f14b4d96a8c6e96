"""One trajectory as a state machine over token ids. It never calls a model, a tool or a clock.

A turn is taken (`take_turn`); it ends the trajectory, or asks for a tool call whose result is taken
(`take_result`); that ends the trajectory, or the next turn is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from elpo.config import RolloutConfig
from elpo.interfaces import Tool, ToolSession, Turn
from elpo.rollout.dialogue import Dialogue
from elpo.rollout.plug_ins import called, opened
from elpo.rollout.tool_calls import MalformedCall
from elpo.types import Problem, Step, StopReason, ToolCall, ToolResult, ToolStatus

MAX_MALFORMED_CALLS = 3
"""Malformed calls a trajectory may make before it is ended; each but the last gets an error as feedback."""


@dataclass(frozen=True)
class Limits:
    """Bounds on one trajectory; tokens count prompt, turns and feedback together.

    A call beyond `max_calls` is not run: the policy is told so, and may still answer.
    """

    max_turns: int
    max_tokens: int
    max_turn_tokens: int
    max_calls: int | None = None

    @staticmethod
    def of(config: RolloutConfig) -> Limits:
        """Those that are configured."""
        return Limits(config.max_turns, config.max_tokens, config.max_turn_tokens)

    def for_problem(self, problem: Problem) -> Limits:
        """These limits, tightened by `problem.metadata["max_turns"]` where a task sets it."""
        turns = min(self.max_turns, int(problem.metadata.get("max_turns", self.max_turns)))
        return replace(self, max_turns=turns)


@dataclass(frozen=True)
class Environment:
    """The tools as one rollout has left them: a session of each tool it has called, immutable."""

    tools: Mapping[str, Tool]
    problem: Problem
    sessions: Mapping[str, ToolSession]

    @staticmethod
    def start(tools: Mapping[str, Tool], problem: Problem) -> Environment:
        """The environment before the first call; a session opens when its tool is first called."""
        return Environment(tools, problem, {})

    def call(self, call: ToolCall) -> tuple[ToolResult, Environment]:
        """Run `call`; the environment it was called on stays as it was. Never raises for bad input."""
        tool = self.tools.get(call.name)
        if tool is None:
            known = ", ".join(sorted(self.tools)) or "none"
            text = f"Error: there is no tool {call.name!r}; the tools are: {known}"
            return ToolResult(ToolStatus.MALFORMED_CALL, text), self
        session = self.sessions.get(call.name) or opened(tool, self.problem)
        if isinstance(session, ToolResult):
            return session, self
        result, after = called(session, call)
        return result, Environment(self.tools, self.problem, {**self.sessions, call.name: after})

    def close(self) -> None:
        """Close every session; those of other environments stay open."""
        for session in self.sessions.values():
            session.close()


class Episode:
    """A rollout in progress, from the prompt or from a prefix of an earlier one."""

    def __init__(
        self,
        dialogue: Dialogue,
        limits: Limits,
        context: np.ndarray,
        environment: Environment,
        turns_taken: int = 0,
        malformed_calls: int = 0,
        calls: int = 0,
    ) -> None:
        self._dialogue = dialogue
        self._limits = limits
        self._turns_taken = turns_taken
        self._malformed_calls = malformed_calls
        self._calls = calls
        self._turn: Turn | None = None
        self._text = ""  # of that turn
        self.context = context
        self.environment = environment
        self.steps: list[Step] = []
        self.environments: list[Environment] = []  # after each step
        self.stop: StopReason | None = None

    @property
    def max_new_tokens(self) -> int:
        """Tokens the next turn may have."""
        return min(self._limits.max_turn_tokens, self._limits.max_tokens - len(self.context))

    def take_turn(self, turn: Turn) -> ToolCall | None:
        """Read an assistant turn; return the call to run, or None.

        After None either `stop` says why the trajectory ended, or a call that was malformed or one too many
        has already been answered and the next turn can be sampled.
        """
        self._turn, self._text = turn, self._dialogue.text(turn.token_ids)
        self._turns_taken += 1
        if not turn.ended:
            self._finish(StopReason.TOKEN_LIMIT)
            return None
        try:
            call = self._dialogue.tool_call(self._text)
        except MalformedCall as error:
            self._malformed_calls += 1
            result = ToolResult(ToolStatus.MALFORMED_CALL, f"Error: malformed tool call: {error}")
            self.take_result(None, result, self.environment)
            return None
        if call is None:
            self._finish(StopReason.ANSWER)
            return None
        self._calls += 1
        max_calls = self._limits.max_calls
        if max_calls is not None and self._calls > max_calls:
            text = f"Error: no tool call is left (the limit is {max_calls}); answer now"
            self.take_result(call, ToolResult(ToolStatus.RESOURCE_LIMIT, text), self.environment)
            return None
        return call

    def take_result(self, call: ToolCall | None, result: ToolResult, environment: Environment) -> None:
        """Append the tool's feedback, or end the trajectory where no turn could follow it."""
        feedback = self._dialogue.feedback_ids(result.output)
        length = len(self.context) + len(self._sampled_ids) + len(feedback)
        if result.status is ToolStatus.INFRASTRUCTURE_FAULT:
            self.stop = StopReason.FAULT
        elif self._malformed_calls >= MAX_MALFORMED_CALLS:
            self.stop = StopReason.MALFORMED_CALLS
        elif self._turns_taken >= self._limits.max_turns:
            self.stop = StopReason.TURN_LIMIT
        elif length >= self._limits.max_tokens:
            self.stop = StopReason.TOKEN_LIMIT
        self._append(feedback[:0] if self.stop else feedback, call, result, environment)

    def _finish(self, stop: StopReason) -> None:
        self.stop = stop
        self._append(np.empty(0, np.int64), None, None, self.environment)

    @property
    def _sampled_ids(self) -> np.ndarray:
        assert self._turn is not None, "a result without a turn"
        return self._turn.token_ids

    def _append(
        self, feedback: np.ndarray, call: ToolCall | None, result: ToolResult | None, environment: Environment
    ) -> None:
        turn = self._turn
        assert turn is not None
        fill = np.zeros(len(feedback), np.float32)
        step = Step(
            token_ids=np.concatenate([turn.token_ids, feedback]),
            sampled=np.concatenate([np.ones(len(turn.token_ids), bool), np.zeros(len(feedback), bool)]),
            logprobs=np.concatenate([turn.logprobs, fill]),
            entropies=np.concatenate([turn.entropies, fill]),
            text=self._text,
            tool_call=call,
            tool_result=result,
        )
        self.context = np.concatenate([self.context, step.token_ids])
        self.environment = environment
        self.steps.append(step)
        self.environments.append(environment)
        self._turn = None
