from __future__ import annotations

import random
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from elpo.graders.code import CodeGrader
from elpo.graders.code_tests import CodeTests
from elpo.interfaces import Split
from elpo.tasks.loading import load_task
from elpo.tasks.programs import (
    ProgramsConfig,
    ProgramsTask,
    first_irrecoverable_step,
    recoverable,
    written_program,
)
from elpo.tasks.programs_demonstrations import definition
from elpo.tasks.programs_spec import COMPUTE, CONFUSED_WITH, Line, Spec
from elpo.types import Problem, Step, StopReason, ToolCall, ToolResult, ToolStatus

from .ledger_transcripts import answer, step
from .program_transcripts import Session

TASK = ProgramsTask(ProgramsConfig(slack=1))
LINES = (Line("add", "raise by", 5), Line("sub", "lower by", 4), Line("cap", "cap at", 20))
PROBLEM = TASK.problem(Spec(14, LINES))  # 14, 19, 15, 15; 5 turns
RIGHT = tuple(definition(line.op, line.amount) for line in LINES)
REFUSED = "f.then(lambda x: x * 5)"


def played(*codes: str, problem: Problem = PROBLEM, final: object = None) -> list[Step]:
    session = Session(problem)
    steps = [session.call(code) for code in codes]
    return steps if final is None else [*steps, answer(final)]


# grading


def test_the_right_lines_and_value_are_correct() -> None:
    outcome = TASK.grade(PROBLEM, played(*RIGHT, final=15), StopReason.ANSWER)
    assert (outcome.correct, outcome.reward, outcome.answer) == (True, 1, "15")
    otherwise = [
        "f.then(lambda n: 5 + n)",
        "print(f.then(lambda y: -4 + y))",
        "f.then(lambda x: x if x < 20 else 20)",
    ]
    assert TASK.grade(PROBLEM, played(*otherwise, final="+015"), StopReason.ANSWER).correct
    assert TASK.grade(PROBLEM, played(REFUSED, *RIGHT, final=15), StopReason.ANSWER).correct


@pytest.mark.parametrize(
    "steps",
    [
        played(*RIGHT, final=14),
        played(*RIGHT[:2], final=15),  # a line is missing
        played(final=15),
        played(RIGHT[0], "f.then(lambda x: max(x - 4, 0))", RIGHT[2], final=15),  # blind to the visible test
        played(RIGHT[0], "f.then(lambda x: 15)", RIGHT[2], final=15),
        played(*RIGHT[:2], "f.then(lambda x: x)", final=15),
        played("f._value = 19; f._expected = f._expected[1:]", *RIGHT[1:], final=15),
        [*played(*RIGHT), step("it is 15")],
        [*played(*RIGHT), step("\\boxed{15")],
        [*played(*RIGHT), step("\\boxed{-15}")],
        played(*RIGHT),
        [],
    ],
    ids=range(12),
)
def test_everything_else_is_wrong(steps: list[Step]) -> None:
    outcome = TASK.grade(PROBLEM, steps, StopReason.ANSWER)
    assert (outcome.correct, outcome.reward) == (False, -1)


@pytest.mark.parametrize("stop", [stop for stop in StopReason if stop is not StopReason.ANSWER])
def test_a_trajectory_that_was_cut_is_wrong(stop: StopReason) -> None:
    outcome = TASK.grade(PROBLEM, played(*RIGHT, final=15), stop)
    assert (outcome.correct, outcome.answer, outcome.stop) == (False, None, stop)


@settings(max_examples=100)
@given(st.lists(st.text(max_size=30) | st.sampled_from(RIGHT), max_size=6), st.text(max_size=20))
def test_nothing_the_policy_writes_raises(codes: list[str], text: str) -> None:
    for status in (ToolStatus.OK, ToolStatus.PROGRAM_ERROR):
        steps = [step(code, ToolCall("python", {"code": code}), ToolResult(status, "")) for code in codes]
        for stop in StopReason:
            TASK.grade(PROBLEM, [*steps, step(text)], stop)
            first_irrecoverable_step(PROBLEM, [*steps, step(text)], stop)


@pytest.mark.parametrize(
    "code", ["(" * 5000, "f.then(lambda x: " + "-" * 5000 + "x)", "f.then(lambda x: x + 5)\n" * 900]
)
def test_hostile_calls_are_only_wrong(code: str) -> None:
    steps = [
        step("", ToolCall("python", {"code": code}), ToolResult(ToolStatus.PROGRAM_ERROR, "")),
        answer(15),
    ]
    assert not TASK.grade(PROBLEM, steps, StopReason.ANSWER).correct


def test_the_code_grader_agrees() -> None:
    """Lines as functions of a module against their unit tests, in the sandbox instead of by our own rule."""
    rng = random.Random(0)
    verdicts = []
    with CodeGrader() as grader:
        for problem in TASK.problems("test", 8):
            lines = [Line(*line) for line in problem.metadata["lines"]]
            wrong = rng.random() < 0.5
            codes = [
                definition(CONFUSED_WITH[x.op] if wrong and rng.random() < 0.3 else x.op, x.amount)
                for x in lines
            ]
            steps = played(*codes, problem=problem, final=problem.answer)
            written = written_program(problem, steps)
            assert written is not None
            program = "\n".join(f"line_{k} = {d.source}" for k, d in enumerate(written)) + "\n"
            asserts = [
                f"assert line_{k}({x}) == {output}"
                for k, line in enumerate(lines)
                for x, output in line.unit_tests
            ]
            verdict = grader.grade(f"```python\n{program}```", CodeTests.from_asserts(asserts)).correct
            assert verdict == TASK.grade(problem, steps, StopReason.ANSWER).correct
            verdicts.append(verdict)
    assert set(verdicts) == {True, False}


# the oracle against brute force over real executions

ALPHABET = ("f.then(lambda x: x + 2)", "f.look()", "f.then(")


def is_correct(problem: Problem, codes: tuple[str, ...], final: str) -> bool:
    """Success as the rules say it, from the session itself: its functions and its value."""
    if len(codes) + 1 > problem.metadata["max_turns"]:
        return False
    session = Session(problem)
    for code in codes:
        session.call(code)
    lines = [Line(*line) for line in problem.metadata["lines"]]
    right = len(session.committed) == len(lines) and all(
        function(x) == output
        for function, line in zip(session.committed, lines, strict=True)
        for x, output in line.unit_tests
    )
    return right and str(session.value) == final == problem.answer


@pytest.mark.parametrize(
    "lines",
    [
        (Line("sub", "cut by", 3), Line("mod", "wrap at", 15)),
        (Line("mul", "scale by", 2), Line("gap", "differ from", 3)),
    ],
)
@pytest.mark.parametrize("slack", [0, 1])
def test_recoverable_is_what_exhaustive_search_finds(lines: tuple[Line, ...], slack: int) -> None:
    problem = ProgramsTask(ProgramsConfig(slack=slack)).problem(Spec(14, lines))
    right = [definition(line.op, line.amount) for line in lines]
    confused = [definition(CONFUSED_WITH[line.op], line.amount) for line in lines]
    alphabet = [*dict.fromkeys([*right, *confused, *ALPHABET])]
    max_turns = problem.metadata["max_turns"]

    @cache
    def can_succeed(codes: tuple[str, ...]) -> bool:
        if is_correct(problem, codes, problem.answer):
            return True
        return len(codes) < max_turns and any(can_succeed((*codes, code)) for code in alphabet)

    for length in range(max_turns + 1):
        for codes in product(alphabet, repeat=length):
            assert recoverable(problem, played(*codes, problem=problem)) == can_succeed(codes), codes
    assert can_succeed(())
    assert not can_succeed((alphabet[0],) * max_turns)


@settings(max_examples=100)
@given(
    st.lists(
        st.sampled_from(
            [
                *RIGHT,
                REFUSED,
                "f.then(lambda x: abs(x - 4))",
                "f.then(lambda x: x % 20)",
                "f.look()",
                "f.then(",
            ]
        ),
        max_size=5,
    )
)
def test_recoverability_ends_once_and_grading_agrees(codes: list[str]) -> None:
    """The oracle is monotone, and a trajectory succeeds iff it is recoverable to its very end."""
    for final in (15, 14):
        steps = played(*codes[:4], final=final)
        flags = [recoverable(PROBLEM, steps[:length]) for length in range(len(steps) + 1)]
        assert flags == sorted(flags, reverse=True)
        assert TASK.grade(PROBLEM, steps, StopReason.ANSWER).correct == flags[-1]
        assert first_irrecoverable_step(PROBLEM, steps) == (None if flags[-1] else flags.index(False))
        assert flags[-1] == is_correct(PROBLEM, tuple(codes[:4]), str(final))


def test_first_irrecoverable_step_by_hand() -> None:
    def first(*codes: str, final: object = 15) -> int | None:
        return first_irrecoverable_step(PROBLEM, played(*codes, final=final))

    assert first(*RIGHT) is None
    assert first(REFUSED, *RIGHT) is None  # the visible test caught it
    assert first(RIGHT[0], "f.then(lambda x: max(x - 4, 0))", RIGHT[2]) == 2  # it did not
    assert first(*RIGHT[:2], "f.then(lambda x: x % 20)") == 3
    assert first(*RIGHT, final=14) == 4
    assert first("f.look()", REFUSED, *RIGHT[:2]) == 2  # too few turns are left
    assert first(RIGHT[0], "g = f", *RIGHT[1:]) == 2
    assert first_irrecoverable_step(PROBLEM, played(*RIGHT[:2]), StopReason.TOKEN_LIMIT) == 2
    with pytest.raises(ValueError, match="at least one step"):
        first_irrecoverable_step(PROBLEM, [])


# problems and options


def test_problems_are_deterministic_prefix_stable_and_disjoint() -> None:
    fifty = TASK.problems("train", 50)
    assert fifty[:10] == TASK.problems("train", 10)
    assert fifty == ProgramsTask(ProgramsConfig(slack=1)).problems("train", 50)
    assert fifty != ProgramsTask(ProgramsConfig(slack=1, seed=1)).problems("train", 50)
    splits: tuple[Split, ...] = ("train", "validation", "test")
    problems = [problem for split in splits for problem in TASK.problems(split, 400)]
    assert len({problem.id for problem in problems}) == len(problems)
    assert len({problem.messages[0]["content"] for problem in problems}) == len(problems)


def test_a_problem_is_solved_by_its_gold_turns() -> None:
    task = ProgramsTask(ProgramsConfig(max_lines=12))
    lengths = set()
    for problem in task.problems("validation", 60):
        *calls, final = task.gold_turns(problem)
        lengths.add(len(calls))
        session = Session(problem)
        steps = [session.call(call.arguments["code"]) for call in calls if isinstance(call, ToolCall)]
        assert str(session.value) == problem.answer
        assert task.grade(problem, [*steps, step(str(final))], StopReason.ANSWER).correct
        assert problem.metadata["max_turns"] == len(calls) + 4
        value = problem.metadata["start"]
        for op, verb, amount in problem.metadata["lines"]:
            assert f"\n{verb} {amount}" in problem.messages[0]["content"]
            value = COMPUTE[op](value, amount)
        assert str(value) == problem.answer
    assert lengths == set(range(4, 13))


def test_the_task_is_built_in() -> None:
    task = load_task("programs", {"min_lines": 6, "max_lines": 6})
    assert isinstance(task, ProgramsTask)
    assert {len(problem.metadata["lines"]) for problem in task.problems("train", 5)} == {6}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lines": 3}, "greater than or equal to 4"),
        ({"max_lines": 13}, "less than or equal to 12"),
        ({"min_lines": 9}, "min_lines 9 is above max_lines 8"),
        ({"slack": -1}, "greater than or equal to 0"),
        ({"reward_wrong": 1.0}, "reward_wrong 1 is not below reward_correct 1"),
        ({"hard_verbs": ["cut by", "cut"]}, "cut"),
        ({"hard_verbs": ["cut by", "cut by"]}, "twice"),
        ({"easy_error": 1.0}, "less than 1"),
        ({"look": 0.5, "syntax_error": 0.5}, "keep the sum below 1"),
        ({"lines": 4}, "Extra inputs"),
    ],
)
def test_bad_options_are_refused_with_their_value(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ProgramsConfig.model_validate(options)
