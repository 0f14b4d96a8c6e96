"""Verifying a task before anything is trained on it: `elpo check`.

A grader that calls right answers wrong, or garbage right, poisons a run without a sign of it. So a task is
asked for problems, and its grader for judgements whose outcome is known.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from elpo.interfaces import Split, Task, Tool
from elpo.tasks.check_messages import demonstration_faults, prompt_faults
from elpo.tasks.garbage import GARBAGE
from elpo.tasks.solutions import Solution, other_solution, play, solutions
from elpo.types import Outcome, Problem, StopReason, ToolCall

SPLITS: tuple[Split, ...] = get_args(Split)

NUM_LISTED = 10_000
"""Problems of a split that are listed to compare their ids."""

NUM_GARBAGE_PROBLEMS = 2
NUM_DEMONSTRATIONS = 20
MAX_OTHERS_RIGHT = 0.1
"""The share of other problems' solutions that may be right by accident; one always may."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: how often, what came of it, and what is wrong."""

    name: str
    num_tried: int
    result: str
    findings: tuple[str, ...] = ()


def check_task(
    task: Task, tools: Mapping[str, Tool], num: int = 20, splits: Sequence[Split] = SPLITS
) -> list[Check]:
    """Look at the splits of a task and grade `num` problems of each; a sound task has no findings.

    Right solutions come from the task's `gold_turns` (`elpo.tasks.solutions`); without them it is only
    checked that garbage is not right. Of a confidential problem nothing but its id is told.
    """
    listed, checks = _check_splits(task, splits)
    problems = [problem for found in listed.values() for problem in found[:num]]
    checks.append(_check_prompts(problems))
    known = solutions(task, problems)
    checks += [_check_own(task, tools, known), _check_others(task, tools, known)]
    checks.append(_check_garbage(task, problems))
    if hasattr(task, "demonstrations"):
        checks.append(_check_demonstrations(task, listed))
    return checks


def _check_splits(task: Task, splits: Sequence[Split]) -> tuple[dict[Split, Sequence[Problem]], list[Check]]:
    listed: dict[Split, Sequence[Problem]] = dict.fromkeys(splits, ())
    findings = []
    for split in splits:
        try:
            listed[split] = task.problems(split, NUM_LISTED)
            again = task.problems(split, 3)
        except Exception as error:
            findings.append(f"{split}: {type(error).__name__}: {error}")
            continue
        if [problem.id for problem in again] != [problem.id for problem in listed[split][:3]]:
            findings.append(f"{split}: asked again for fewer problems, it gives others")
    owners: dict[str, tuple[Split, str]] = {}
    for split, problems in listed.items():
        twice = [name for name, times in Counter(problem.id for problem in problems).items() if times > 1]
        if twice:
            findings.append(f"{split}: {len(twice)} ids are not unique, such as {twice[0]}")
        for problem in problems:
            for what, key in (("id", problem.id), ("messages", repr(problem.messages))):
                other_split, other = owners.setdefault(key, (split, problem.id))
                if other_split != split:
                    owner = f"{other_split} problem {other}"
                    findings.append(f"{split} problem {problem.id} has the {what} of {owner}")
                    break
    if not any(listed.values()) and not findings:
        findings.append("there are no problems")
    more = {NUM_LISTED: " or more"}
    sizes = ", ".join(f"{split} {len(found)}{more.get(len(found), '')}" for split, found in listed.items())
    checks = [Check("splits", sum(map(len, listed.values())), sizes, tuple(findings))]
    if any(listed.values()) and hasattr(task, "bad_rows"):
        rows = task.bad_rows
        first = f", the first: {rows[0].place}: {rows[0].reason}" if rows else ""
        checks.append(Check("rows left out", len(rows), f"{len(rows)}{first}"))
    return listed, checks


def _check_prompts(problems: Sequence[Problem]) -> Check:
    findings = [f"{problem.id}: {fault}" for problem in problems for fault in prompt_faults(problem)]
    lengths = [sum(len(str(message.get("content"))) for message in p.messages) for p in problems]
    return Check("prompts", len(problems), f"longest {max(lengths, default=0)} characters", tuple(findings))


def _check_own(task: Task, tools: Mapping[str, Tool], known: Sequence[Solution]) -> Check:
    findings = []
    for problem, turns in known:
        outcome = _judge(task, problem, turns, tools)
        if isinstance(outcome, str):
            findings.append(outcome)
        elif not outcome.correct:
            findings.append(f"{problem.id}: its own solution is graded wrong")
    result = f"{len(known) - len(findings)} right" if known else "not checked: the task shows no solutions"
    return Check("own solutions", len(known), result, tuple(findings))


def _check_others(task: Task, tools: Mapping[str, Tool], known: Sequence[Solution]) -> Check:
    tried, right, findings = 0, [], []
    for index, (problem, _) in enumerate(known):
        turns = other_solution(known, index)
        if turns is None:
            continue
        tried += 1
        outcome = _judge(task, problem, turns, tools)
        if isinstance(outcome, str):
            findings.append(outcome)
        elif outcome.correct:
            right.append(f"{problem.id}: the solution of another problem is graded right")
    if len(right) > max(1, MAX_OTHERS_RIGHT * tried):
        findings += right
    result = f"{len(right)} right" if tried else "not checked: there are no two different solutions"
    return Check("others' solutions", tried, result, tuple(findings))


def _check_garbage(task: Task, problems: Sequence[Problem]) -> Check:
    findings, seconds = [], {"": 0.0}
    for problem in problems[:NUM_GARBAGE_PROBLEMS]:
        for name, text in GARBAGE.items():
            started = time.perf_counter()
            outcome = _judge(task, problem, [text], {})
            seconds[name] = time.perf_counter() - started
            if isinstance(outcome, str):
                findings.append(f"{outcome} (garbage: {name})")
            elif outcome.correct:
                findings.append(f"{problem.id}: garbage ({name}) is graded right")
            elif not math.isfinite(outcome.reward):
                findings.append(f"{problem.id}: garbage ({name}) earns the reward {outcome.reward}")
    slowest = max(seconds, key=lambda name: seconds[name])
    tried = len(problems[:NUM_GARBAGE_PROBLEMS]) * len(GARBAGE)
    return Check("garbage", tried, f"slowest {seconds[slowest]:.1f} s {slowest}", tuple(findings))


def _judge(
    task: Task, problem: Problem, turns: Sequence[ToolCall | str], tools: Mapping[str, Tool]
) -> Outcome | str:
    """The outcome of a finished trajectory, or what prevented it."""
    try:
        return task.grade(problem, play(turns, problem, tools), StopReason.ANSWER)
    except Exception as error:
        told = "" if problem.metadata.get("confidential") else f": {str(error)[:200]}"
        return f"{problem.id}: {type(error).__name__}{told}"


def _check_demonstrations(task: Any, listed: Mapping[Split, Sequence[Problem]]) -> Check:
    held_out = {
        repr([dict(message) for message in problem.messages]): problem.id
        for split, problems in listed.items()
        for problem in problems
        if split != "train"
    }
    findings = []
    try:
        demonstrations = task.demonstrations(NUM_DEMONSTRATIONS, seed=0)
        if demonstrations != task.demonstrations(NUM_DEMONSTRATIONS, seed=0):
            findings.append("the same seed gives other demonstrations")
    except Exception as error:
        return Check("demonstrations", 0, "none", (f"{type(error).__name__}: {error}",))
    for index, demonstration in enumerate(demonstrations):
        messages = demonstration["messages"]
        faults = demonstration_faults(messages, task.tool_names)
        question = [dict(message) for message in messages if message.get("role") in ("system", "user")]
        if twin := held_out.get(repr(question)):
            faults.append(f"it is of {twin}, a held-out problem")
        findings += [f"demonstration {index}: {fault}" for fault in faults]
    return Check("demonstrations", len(demonstrations), f"{len(demonstrations)} read", tuple(findings))
