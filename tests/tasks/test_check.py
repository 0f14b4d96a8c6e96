"""`check_task` has nothing to say about sound tasks, and names what is wrong with every broken one."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from elpo.interfaces import Split
from elpo.tasks.check import Check, check_task
from elpo.tasks.garbage import GARBAGE
from elpo.tasks.solutions import other_solution, play, solutions
from elpo.types import Outcome, Problem, Step, StopReason, ToolCall, ToolResult, ToolStatus
from tests.tasks.datasets import CODE, shared_task

FIRST: dict[Split, int] = {"train": 0, "validation": 100, "test": 200}


class Sums:
    """A sound task; its solutions use a tool. Every fault is a method that a test replaces."""

    name = "sums"
    tool_names: Sequence[str] = ("adder",)

    def problems(self, split: Split, num: int) -> list[Problem]:
        return [self.problem(FIRST[split] + i) for i in range(min(num, 40))]

    def problem(self, number: int) -> Problem:
        messages = ({"role": "user", "content": f"{number} + 1?"},)
        return Problem(f"sum-{number}", messages, str(number + 1), {"number": number})

    def grade(self, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
        last = re.findall(r"= (\d+)", steps[-1].text)
        called = [step.tool_result.output for step in steps if step.tool_result]
        correct = stop is StopReason.ANSWER and last == called == [problem.answer]
        return Outcome(float(correct), correct, stop)

    def gold_turns(self, problem: Problem) -> list[ToolCall | str]:
        return [ToolCall("adder", {"n": problem.metadata["number"]}), f"= {problem.answer}"]

    def demonstrations(self, num: int, seed: int) -> list[dict[str, Any]]:
        rng = random.Random(seed)
        return [self.demonstration(self.problem(rng.randrange(40))) for _ in range(num)]

    def demonstration(self, problem: Problem) -> dict[str, Any]:
        calls = [{"type": "function", "function": {"name": "adder", "arguments": {"n": 1}}}]
        turns = [{"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "2"}]
        return {"messages": [*problem.messages, *turns, {"role": "assistant", "content": "= 2"}]}


class Adder:
    name = "adder"
    schema: dict[str, Any] = {}

    def __init__(self) -> None:
        self.opened = self.closed = 0

    def open(self, problem: Problem) -> Adder:
        self.opened += 1
        return self

    def call(self, call: ToolCall) -> tuple[ToolResult, Adder]:
        return ToolResult(ToolStatus.OK, str(call.arguments["n"] + 1)), self

    def close(self) -> None:
        self.closed += 1


GRADE, DEMONSTRATION = Sums.grade, Sums.demonstration


def findings(task: Any, num: int = 5) -> dict[str, tuple[str, ...]]:
    checks = check_task(task, {"adder": Adder()}, num)
    return {check.name: check.findings for check in checks if check.findings}


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_sound_task_has_no_findings() -> None:
    checks = by_name(check_task(Sums(), {"adder": Adder()}, 5))
    assert not any(check.findings for check in checks.values())
    assert checks["splits"].result == "train 40, validation 40, test 40"
    assert checks["own solutions"].result == "15 right" and checks["others' solutions"].result == "0 right"
    assert checks["garbage"].num_tried == 2 * len(GARBAGE)
    assert checks["demonstrations"].num_tried == 20


@pytest.mark.parametrize("name", ["gsm8k", "math", "gpqa", "mr_ben"])
def test_the_tasks_over_data_sets_are_sound(name: str) -> None:
    task = shared_task(name)
    checks = by_name(check_task(task, {}, 4))
    assert not any(check.findings for check in checks.values()), checks
    assert checks["own solutions"].num_tried >= 3 and checks["others' solutions"].result == "0 right"


@pytest.mark.parametrize("name", CODE)
def test_the_tasks_with_programs_are_sound(name: str) -> None:
    task = shared_task(name)
    checks = by_name(check_task(task, {}, 4))
    assert not any(check.findings for check in checks.values()), checks
    assert checks["own solutions"].num_tried >= 4 and checks["others' solutions"].result == "0 right"


def ask(number: int, *messages: Any) -> Problem:
    return Problem(f"sum-{number}", messages, str(number), {"number": number})


def grade_everything_right(self: Any, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
    return Outcome(1.0, True, stop)


def grade_everything_wrong(self: Any, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
    return Outcome(0.0, False, stop)


def raise_on_anything_odd(self: Any, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
    if not steps[-1].text.startswith("="):
        raise IndexError("list index out of range")
    return GRADE(self, problem, steps, stop)


def any_number(self: Any, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
    correct = bool(re.search(r"\d", steps[-1].text))
    return Outcome(float(correct), correct, stop)


def not_a_number(self: Any, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
    outcome = GRADE(self, problem, steps, stop)
    return outcome if outcome.correct else Outcome(float("nan"), False, stop)


@pytest.mark.parametrize(
    ("method", "fault", "check", "message"),
    [
        ("grade", grade_everything_right, "garbage", "sum-0: garbage (empty) is graded right"),
        ("grade", grade_everything_right, "others' solutions", "sum-0: the solution of another"),
        ("grade", grade_everything_wrong, "own solutions", "sum-0: its own solution is graded wrong"),
        ("grade", raise_on_anything_odd, "garbage", "sum-0: IndexError: list index out of range (garbage: "),
        ("grade", any_number, "garbage", "is graded right"),
        ("grade", not_a_number, "garbage", "sum-0: garbage (empty) earns the reward nan"),
        (
            "problems",
            lambda self, split, num: [self.problem(i) for i in range(num)][:9],
            "splits",
            "validation problem sum-0 has the id of train problem sum-0",
        ),
        (
            "problems",
            lambda self, split, num: [self.problem(FIRST[split])] * 2,
            "splits",
            "1 ids are not unique",
        ),
        ("problems", lambda self, split, num: [], "splits", "there are no problems"),
        (
            "problems",
            lambda self, split, num: [self.problem(FIRST[split] + num % 50 + i) for i in range(min(num, 9))],
            "splits",
            "train: asked again for fewer problems, it gives others",
        ),
        ("problems", lambda self, split, num: {}[split], "splits", "train: KeyError: 'train'"),
        ("problem", lambda self, n: ask(n, {"role": "user"}), "prompts", "has no text"),
        (
            "problem",
            lambda self, n: ask(n, {"role": "user", "content": f"{n}\ud800"}),
            "prompts",
            "is not valid Unicode",
        ),
        (
            "problem",
            lambda self, n: ask(n, {"role": "assistant", "content": f"{n}"}),
            "prompts",
            "the last message is not the user's",
        ),
        (
            "problem",
            lambda self, n: ask(
                n, {"role": "robot", "content": f"{n}"}, {"role": "robot", "content": f"{n}"}
            ),
            "prompts",
            "message 0 has the role 'robot'",
        ),
        (
            "gold_turns",
            lambda self, p: [ToolCall("abacus", {}), "= 1"],
            "own solutions",
            "KeyError: 'abacus'",
        ),
        (
            "demonstrations",
            lambda self, num, seed: [self.demonstration(self.problem(200))] * num,
            "demonstrations",
            "demonstration 0: it is of sum-200, a held-out problem",
        ),
        (
            "demonstrations",
            lambda self, num, seed: [{"messages": [{"n": random.random()}]}] * num,
            "demonstrations",
            "the same seed gives other demonstrations",
        ),
        (
            "demonstration",
            lambda self, p: {"messages": DEMONSTRATION(self, p)["messages"][:-1]},
            "demonstrations",
            "it does not end with an answer",
        ),
        (
            "demonstration",
            lambda self, p: {
                "messages": [m for m in DEMONSTRATION(self, p)["messages"] if m["role"] != "tool"]
            },
            "demonstrations",
            "a call is not followed by its result",
        ),
        (
            "demonstration",
            lambda self, p: {"messages": DEMONSTRATION(self, p)["messages"][1:]},
            "demonstrations",
            "it does not begin with a question",
        ),
    ],
)
def test_faults_are_named(
    monkeypatch: pytest.MonkeyPatch, method: str, fault: Any, check: str, message: str
) -> None:
    monkeypatch.setattr(Sums, method, fault, raising=False)
    found = findings(Sums())
    assert any(message in finding for finding in found.get(check, ())), found


def test_a_demonstration_with_a_tool_the_task_does_not_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sums, "tool_names", ("python",))
    assert "it calls adder, which the task does not name as a tool" in findings(Sums())["demonstrations"][0]


def test_a_task_without_solutions_is_checked_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Sums, "gold_turns")
    monkeypatch.delattr(Sums, "demonstrations")
    checks = by_name(check_task(Sums(), {}, 5))
    assert "not checked" in checks["own solutions"].result and "demonstrations" not in checks
    monkeypatch.setattr(Sums, "grade", grade_everything_right)
    assert set(findings(Sums())) == {"garbage"}


def test_one_accident_among_other_solutions_is_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(self: Any, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
        accident = problem.id == "sum-3" and steps[-1].text == "= 5"
        return Outcome(1.0, True, stop) if accident else GRADE(self, problem, steps, stop)

    monkeypatch.setattr(Sums, "grade", lenient)
    check = by_name(check_task(Sums(), {"adder": Adder()}, 5))["others' solutions"]
    assert check.result == "1 right" and not check.findings


def test_nothing_of_a_confidential_problem_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Any, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
        raise ValueError(f"cannot read {problem.messages}")

    def confidential(self: Any, number: int) -> Problem:
        return Problem(
            f"sum-{number}", ({"role": "user", "content": f"SECRET {number}"},), "1", {"confidential": True}
        )

    monkeypatch.setattr(Sums, "grade", failing)
    monkeypatch.setattr(Sums, "problem", confidential)
    monkeypatch.setattr(Sums, "gold_turns", lambda self, problem: ["= 1"])
    found = findings(Sums())
    assert "sum-0: ValueError" in found["own solutions"] and "SECRET" not in str(found)


def test_other_solutions_belong_to_other_answers() -> None:
    def problem(number: int, answer: str) -> Problem:
        return Problem(str(number), (), answer)

    known: Any = [
        (problem(0, "a"), ["x"]),
        (problem(1, "a"), ["y"]),
        (problem(2, "b"), ["x"]),
        (problem(3, "c"), ["z"]),
    ]
    assert [other_solution(known, i) for i in range(4)] == [["z"], ["x"], ["z"], ["x"]]
    assert other_solution(known[:2], 0) is None
    assert solutions(Sums(), []) == [] and solutions(object(), [problem(0, "a")]) == []


def test_playing_closes_every_session() -> None:
    adder, task = Adder(), Sums()
    problem = task.problem(7)
    steps = play([ToolCall("adder", {"n": 1}), ToolCall("adder", {"n": 2}), "= 3"], problem, {"adder": adder})
    assert [step.is_tool_step for step in steps] == [True, True, False]
    assert adder.opened == 1 and adder.closed == 3
