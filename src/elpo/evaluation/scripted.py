"""Success of a policy whose every answer is known: what an evaluation measures when nothing is uncertain.

The policy plays a problem's own solution or, at a given rate, another's. Prompts, chat template, scheduler,
tools and grader are the real ones, so whatever the measured success differs by from the rate is their fault.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elpo.algorithms.strategies import independent
from elpo.interfaces import EngineCounts, Task, Tool, Turn, TurnRequest
from elpo.models.tiny import train_tokenizer
from elpo.rollout.dialogue import Dialogue
from elpo.rollout.episode import Limits
from elpo.rollout.scheduler import Scheduler
from elpo.rollout.tool_calls import CALL_CLOSE, CALL_OPEN
from elpo.tasks.check import MAX_OTHERS_RIGHT, Check
from elpo.tasks.solutions import Turns, other_solution, solutions
from elpo.types import Problem, ToolCall

Choice = tuple[Sequence[str], Sequence[str]]
"""The turns of a problem's own solution, and of another's."""

TOKENIZER_CONVERSATIONS = 50
NO_LIMIT = 1 << 40


@dataclass(frozen=True)
class ScriptedSuccess:
    """How the trajectories were judged that played their own solution, and those that played another's."""

    own: int
    own_right: int
    others: int
    others_right: int
    faults: int
    seconds: float

    @property
    def exact(self) -> bool:
        """True where the own solutions, and no others, were right."""
        return self.own_right == self.own and not self.others_right and not self.faults


class SolutionEngine:
    """Plays solutions (`elpo.interfaces.Engine`): which one a rollout plays its seed decides."""

    num_slots = 16

    def __init__(self, solutions: Mapping[bytes, Choice], others: float, dialogue: Dialogue) -> None:
        """`solutions` by the prompt's token ids."""
        self.counts = EngineCounts()
        self._solutions = solutions
        self._others = others
        self._dialogue = dialogue
        self._queue: dict[int, TurnRequest] = {}
        self._turns: dict[int, Iterator[str]] = {}

    def submit(self, request: TurnRequest) -> None:
        """Queue one turn; the first of a rollout decides what it plays."""
        if request.rollout not in self._turns:
            own, other = self._solutions[request.token_ids.tobytes()]
            draw = np.random.default_rng(request.seed).random()
            self._turns[request.rollout] = iter(other if draw < self._others else own)
        self._queue[request.rollout] = request

    def step(self) -> list[Turn]:
        """The next turn of every queued rollout."""
        turns = [self._turn(rollout) for rollout in sorted(self._queue)]
        self._queue.clear()
        return turns

    def release(self, rollout: int) -> None:
        """The rollout is over."""
        self._queue.pop(rollout, None)
        self._turns.pop(rollout, None)

    def forget(self, group: int) -> None:
        """Nothing is kept."""

    def _turn(self, rollout: int) -> Turn:
        tokenizer = self._dialogue.tokenizer
        text = next(self._turns[rollout], "")
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], self._dialogue.end_id]
        zeros = np.zeros(len(ids), np.float32)
        return Turn(rollout, np.asarray(ids, np.int64), zeros, zeros, ended=True)


def scripted_success(
    task: Task, tools: Mapping[str, Tool], problems: Sequence[Problem], others: float, seed: int = 0
) -> ScriptedSuccess:
    """Play every problem that has a known solution once; a share `others` with another problem's.

    Of problems that ask the same in the same words one is played.

    Raises:
        ValueError: no problem has a known solution that differs from another's.
        InfrastructureError: the tools or the grader fail.
    """
    known = solutions(task, problems)
    pairs = [(problem, turns, other_solution(known, index)) for index, (problem, turns) in enumerate(known)]
    played = [(problem, own, other) for problem, own, other in pairs if other is not None]
    if not played:
        raise ValueError(f"task {task.name!r} shows no two different solutions (gold_turns) to play")
    sample = [{"messages": [dict(m) for m in problem.messages]} for problem, _, _ in played]
    dialogue = Dialogue(
        train_tokenizer(sample[:TOKENIZER_CONVERSATIONS]), [tool.schema for tool in tools.values()]
    )
    by_prompt = {dialogue.prompt_ids(play[0].messages).tobytes(): play for play in played}
    played = list(by_prompt.values())
    turns_by_prompt = {prompt: (texts(own), texts(other)) for prompt, (_, own, other) in by_prompt.items()}
    engine = SolutionEngine(turns_by_prompt, others, dialogue)
    scheduler = Scheduler(engine, task, tools, dialogue, Limits(NO_LIMIT, NO_LIMIT, NO_LIMIT))
    started = time.perf_counter()
    trees, counts = scheduler.grow([problem for problem, _, _ in played], independent(), 1, seed)
    seconds = time.perf_counter() - started
    judged = {True: [0, 0], False: [0, 0]}
    for tree, (_, own, _) in zip(trees, played, strict=True):
        for leaf, outcome in tree.outcomes.items():
            tally = judged[tree.nodes[leaf].step.text == own[-1]]
            tally[outcome.correct] += 1
    return ScriptedSuccess(
        sum(judged[True]), judged[True][1], sum(judged[False]), judged[False][1], counts.faults, seconds
    )


def check_evaluation(task: Task, tools: Mapping[str, Tool], problems: Sequence[Problem]) -> Check:
    """`scripted_success` with half of the solutions another problem's, as a row of `elpo check`."""
    if not solutions(task, problems[:1]):
        return Check("evaluation", 0, "not checked: the task shows no solutions")
    found = scripted_success(task, tools, problems, others=0.5)
    num = found.own + found.others
    result = (
        f"own {found.own_right} of {found.own} right, others' {found.others_right} of {found.others}, "
        f"{num / found.seconds:.0f} trajectories/s"
    )
    findings = []
    if found.own_right < found.own:
        findings.append(f"{found.own - found.own_right} own solutions were graded wrong")
    if found.others_right > max(1, MAX_OTHERS_RIGHT * found.others):
        findings.append(f"{found.others_right} solutions of other problems were graded right")
    if found.faults:
        findings.append(f"{found.faults} trajectories were lost to faults")
    return Check("evaluation", num, result, tuple(findings))


def texts(turns: Turns) -> list[str]:
    """Turns as a policy writes them."""
    return [turn if isinstance(turn, str) else _call_text(turn) for turn in turns]


def _call_text(call: ToolCall) -> str:
    body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
    return f"{CALL_OPEN}\n{body}\n{CALL_CLOSE}"
