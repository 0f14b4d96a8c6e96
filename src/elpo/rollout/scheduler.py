"""Many trees, one engine: whichever trees have work keep the batch full.

Each tree's strategy asks for rollouts and waits for them; the scheduler runs the rollouts of all trees
side by side, decoding in the engine and running tools and grader in threads. A search is a chain of requests,
so the tree with most of its budget left goes first: then all trees end together instead of the last one
alone. A rollout's randomness comes from (seed, problem, draw) alone, so what is drawn does not depend on what
else is in flight. Nothing is drawn on speculation: every draw is spent, and which anchor comes next is as
good as a coin flip.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.strategies import RolloutRequest, Strategy
from elpo.interfaces import Engine, InfrastructureFault, Task, Tool, Turn, TurnRequest
from elpo.rollout.counts import RolloutCounts
from elpo.rollout.dialogue import Dialogue
from elpo.rollout.episode import Environment, Episode, Limits
from elpo.rollout.faults import FaultMeter
from elpo.rollout.plug_ins import graded
from elpo.tree import ROOT, RolloutTree
from elpo.types import Outcome, Problem, StopReason, ToolCall, ToolResult, ToolStatus

OnTree = Callable[[RolloutTree], None]


@dataclass(eq=False)
class _Growth:
    """A tree being grown: its strategy, and the rollouts of the request it waits for."""

    index: int
    tree: RolloutTree
    ledger: BudgetLedger
    strategy: Generator[RolloutRequest, list[int], None]
    environments: dict[int, Environment] = field(default_factory=dict)  # after each node
    awaited: list[_Rollout] = field(default_factory=list)


@dataclass(eq=False)
class _Rollout:
    growth: _Growth
    prefix: int
    seed: int
    episode: Episode
    done: bool = False
    outcome: Outcome | None = None  # stays None where the rollout is unusable


@dataclass(frozen=True)
class Scheduler:
    """Grows rollout trees with one engine.

    With `deterministic` the engine waits for the tools between decode steps, so that the composition of
    every batch, and with it every rounding error, repeats from run to run; without it, decoding goes on
    while tools run.
    """

    engine: Engine
    task: Task
    tools: Mapping[str, Tool]
    dialogue: Dialogue
    limits: Limits
    deterministic: bool = True
    num_threads: int = 8
    call_faults: FaultMeter = field(default_factory=lambda: FaultMeter("tool calls"))
    grader_faults: FaultMeter = field(default_factory=lambda: FaultMeter("gradings"))

    def grow(
        self,
        problems: Sequence[Problem],
        strategy: Strategy,
        num_rollouts: int,
        seed: int,
        policy_version: int = 0,
        on_tree: OnTree | None = None,
    ) -> tuple[list[RolloutTree], RolloutCounts]:
        """Grow one tree per problem, each with a budget of `num_rollouts` draws.

        `on_tree` is called as each tree is finished. Trees are returned in the order of `problems`;
        one whose draws were all unusable has no leaves.

        Raises:
            InfrastructureError: too many of the latest tool calls or gradings were faults.
            ValueError: a prompt leaves no room for an answer.
        """
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="elpo-tool") as threads:
            collection = _Collection(self, threads, strategy, num_rollouts, seed, policy_version, on_tree)
            return collection.run(problems), collection.counts


class _Collection:
    """The state of one `Scheduler.grow`."""

    def __init__(
        self,
        scheduler: Scheduler,
        threads: ThreadPoolExecutor,
        strategy: Strategy,
        num_rollouts: int,
        seed: int,
        policy_version: int,
        on_tree: OnTree | None,
    ) -> None:
        self.counts = RolloutCounts()
        self._scheduler = scheduler
        self._engine = scheduler.engine
        self._threads = threads
        self._strategy = strategy
        self._num_rollouts = num_rollouts
        self._seed = seed
        self._policy_version = policy_version
        self._on_tree = on_tree
        self._ids = count()
        self._order = count()
        self._growing: dict[int, _Growth] = {}
        self._ready: list[tuple[int, int, _Rollout]] = []  # a heap: least budget left last, then first come
        self._live: dict[int, _Rollout] = {}
        self._calls: dict[Future[tuple[ToolResult, Environment]], tuple[int, ToolCall]] = {}
        self._grades: dict[Future[Outcome], _Rollout] = {}

    def run(self, problems: Sequence[Problem]) -> list[RolloutTree]:
        try:
            trees = [self._plant(index, problem).tree for index, problem in enumerate(problems)]
            while self._growing:
                while self._ready and len(self._live) < self._engine.num_slots:
                    *_, rollout = heapq.heappop(self._ready)
                    rollout_id = next(self._ids)
                    self._live[rollout_id] = rollout
                    self._submit(rollout_id, rollout)
                for turn in self._engine.step():
                    self._take_turn(turn.rollout, turn)
                self._take_results()
        finally:
            for rollout_id in self._live:
                self._engine.release(rollout_id)
            for growth in self._growing.values():
                self._fell(growth)
        return trees

    # one tree

    def _plant(self, index: int, problem: Problem) -> _Growth:
        prompt_ids = self._scheduler.dialogue.prompt_ids(problem.messages)
        if len(prompt_ids) >= self._scheduler.limits.max_tokens:
            raise ValueError(
                f"problem {problem.id}: its prompt has {len(prompt_ids)} tokens, rollout.max_tokens is "
                f"{self._scheduler.limits.max_tokens}; raise the limit or drop the problem"
            )
        tree = RolloutTree(problem, prompt_ids, self._policy_version)
        ledger = BudgetLedger(self._num_rollouts)
        rng = np.random.default_rng([self._seed, zlib.crc32(problem.id.encode())])
        growth = _Growth(index, tree, ledger, self._strategy(tree, ledger, rng))
        growth.environments[ROOT] = Environment.start(self._scheduler.tools, problem)
        self._growing[index] = growth
        self._advance(growth, None)
        return growth

    def _advance(self, growth: _Growth, leaves: list[int] | None) -> None:
        """Give the strategy what it waited for and queue what it asks for next."""
        try:
            request = next(growth.strategy) if leaves is None else growth.strategy.send(leaves)
        except StopIteration:
            self._fell(growth)
            del self._growing[growth.index]
            if self._on_tree:
                self._on_tree(growth.tree)
            return
        first_draw = growth.ledger.spent
        growth.ledger.spend(request.num_rollouts)
        draws = range(first_draw, growth.ledger.spent)
        growth.awaited = [self._sprout(growth, request.prefix, draw) for draw in draws]
        for rollout in growth.awaited:
            heapq.heappush(self._ready, (-growth.ledger.remaining, next(self._order), rollout))

    def _sprout(self, growth: _Growth, prefix: int, draw: int) -> _Rollout:
        tree = growth.tree
        path = [tree.nodes[node].step for node in tree.path(prefix)]
        malformed = sum(
            step.tool_call is None and step.tool_result is not None for step in path
        )  # a call to an unknown tool is well formed
        episode = Episode(
            self._scheduler.dialogue,
            self._scheduler.limits.for_problem(tree.problem),
            tree.context(prefix),
            growth.environments[prefix],
            turns_taken=len(path),
            malformed_calls=malformed,
            calls=sum(step.tool_call is not None for step in path),
        )
        entropy = (self._seed, zlib.crc32(tree.problem.id.encode()), draw)
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        self.counts.rollouts += 1
        return _Rollout(growth, prefix, seed, episode)

    def _fell(self, growth: _Growth) -> None:
        """The tree is finished: nothing of it will be continued."""
        self._engine.forget(growth.index)
        for environment in growth.environments.values():
            environment.close()

    # one rollout

    def _submit(self, rollout_id: int, rollout: _Rollout) -> None:
        episode = rollout.episode
        self._engine.submit(
            TurnRequest(
                rollout_id, rollout.growth.index, episode.context, episode.max_new_tokens, rollout.seed
            )
        )

    def _take_turn(self, rollout_id: int, turn: Turn) -> None:
        self.counts.turns += 1
        self.counts.sampled_tokens += len(turn.token_ids)
        rollout = self._live[rollout_id]
        call = rollout.episode.take_turn(turn)
        if call is not None:
            self._calls[self._threads.submit(rollout.episode.environment.call, call)] = (rollout_id, call)
        else:
            self._continue(rollout_id, rollout)

    def _continue(self, rollout_id: int, rollout: _Rollout) -> None:
        """Sample the next turn, or hand a finished trajectory to the grader."""
        episode = rollout.episode
        if episode.stop is None:
            self._submit(rollout_id, rollout)
            return
        self._engine.release(rollout_id)
        del self._live[rollout_id]
        if episode.stop is StopReason.FAULT:
            self.counts.faults += 1
            self._finish(rollout)
            return
        tree = rollout.growth.tree
        steps = [*(tree.nodes[node].step for node in tree.path(rollout.prefix)), *episode.steps]
        grade = self._scheduler.task.grade
        self._grades[self._threads.submit(graded, grade, tree.problem, steps, episode.stop)] = rollout

    def _take_results(self) -> None:
        """Continue the rollouts whose tool call or grading is over, in the order they were started."""
        waiting: list[Future[Any]] = [*self._calls, *self._grades]
        if not waiting:
            return
        submitted = len(self._live) - len(self._calls)
        if not self._scheduler.deterministic and not submitted and not self._ready:
            wait(waiting, return_when=FIRST_COMPLETED)
        for call in list(self._calls):
            if self._scheduler.deterministic or call.done():
                self._take_result(call)
        for grade in list(self._grades):
            if self._scheduler.deterministic or grade.done():
                self._take_grade(self._grades.pop(grade), grade)

    def _take_result(self, future: Future[tuple[ToolResult, Environment]]) -> None:
        rollout_id, call = self._calls.pop(future)
        result, environment = future.result()
        statuses = self.counts.statuses
        statuses[result.status] = statuses.get(result.status, 0) + 1
        self.counts.tool_calls += 1
        self.counts.tool_seconds += result.seconds
        is_fault = result.status is ToolStatus.INFRASTRUCTURE_FAULT
        self._scheduler.call_faults.record(result.output if is_fault else None)
        rollout = self._live[rollout_id]
        rollout.episode.take_result(call, result, environment)
        self._continue(rollout_id, rollout)

    def _take_grade(self, rollout: _Rollout, future: Future[Outcome]) -> None:
        fault: str | None = None
        try:
            rollout.outcome = future.result()
        except InfrastructureFault as error:
            fault = str(error) or type(error).__name__
            self.counts.faults += 1
            self.counts.grader_faults += 1
        self._scheduler.grader_faults.record(fault)
        self._finish(rollout)

    def _finish(self, rollout: _Rollout) -> None:
        """Add a request's rollouts to the tree once all of them are over, in the order drawn."""
        rollout.done = True
        growth = rollout.growth
        if not all(awaited.done for awaited in growth.awaited):
            return
        leaves = []
        for awaited in growth.awaited:
            if awaited.outcome is None:
                continue
            episode = awaited.episode
            leaf = growth.tree.add(awaited.prefix, episode.steps, awaited.outcome)
            nodes = growth.tree.path(leaf)[-len(episode.steps) :]
            growth.environments.update(zip(nodes, episode.environments, strict=True))
            leaves.append(leaf)
        self._advance(growth, leaves)
