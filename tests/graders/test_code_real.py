"""The code grader on real problems, read from the data folder where there is one."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from elpo.graders.code import CodeGrader
from elpo.graders.code_tests import CallTest, CheckTest, CodeTests

from .code_exploits import FUNCTION_EXPLOITS, PROGRAM_EXPLOITS
from .contest_solutions import MISTAKES, SOLUTIONS

DATA = Path(os.environ.get("ELPO_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
Graded = tuple[str, str, CodeTests]  # the function under test, the canonical solution, the tests


@pytest.fixture(scope="module")
def grader() -> Iterator[CodeGrader]:
    with CodeGrader() as grader:
        yield grader


def lines(name: str) -> list[str]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in {DATA}; set ELPO_SHARED_DATA to a folder that has it")
    return (
        (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        .decode()
        .splitlines()
    )


def mbpp() -> list[Graded]:
    problems = []
    for row in map(json.loads, lines("mbpp/mbpp.jsonl")):
        tests = CodeTests.from_asserts(row["test_list"], row["test_setup_code"])
        test = tests.tests[0]
        called = test.expression.replace("(", " ").split() if isinstance(test, CallTest) else test.proxies  # type: ignore[union-attr]
        name = next(name for name in called if f"def {name}" in row["code"])
        problems.append((name, row["code"], tests))
    return problems


def humaneval() -> list[Graded]:
    rows = map(json.loads, lines("humaneval/HumanEval.jsonl.gz"))
    return [
        (
            row["entry_point"],
            row["prompt"] + row["canonical_solution"],
            CodeTests.from_check(row["test"], row["entry_point"], row["prompt"]),
        )
        for row in rows
    ]


def contest(name: str) -> CodeTests:
    rows = map(json.loads, lines("sandboxfusion_samples/code_eval_code_contests.jsonl"))
    cases = next(json.loads(row["test"]) for row in rows if json.loads(row["labels"])["name"] == name)
    return CodeTests.from_stdio(
        [case["input"]["stdin"] for case in cases], [case["output"]["stdout"] for case in cases]
    )


def not_correct(grader: CodeGrader, problems: Sequence[Graded]) -> list[str]:
    grades = [(name, grader.grade_code(code, tests)) for name, code, tests in problems]
    return [f"{name}: {grade.detail}" for name, grade in grades if not grade.correct]


def test_a_sample_of_canonical_solutions_passes(grader: CodeGrader) -> None:
    assert not_correct(grader, mbpp()[::25]) == []
    assert not_correct(grader, humaneval()[::8]) == []


def test_a_sample_of_exploits_scores_nothing() -> None:
    problems = [*mbpp()[7::240], *humaneval()[4::70]]
    with CodeGrader(timeout=1.0) as grader:
        for exploit, code in FUNCTION_EXPLOITS.items():
            for name, _, tests in problems:
                assert not grader.grade_code(code.replace("NAME", name), tests).correct, (exploit, name)


@pytest.mark.slow
def test_all_canonical_solutions_pass() -> None:
    problems = [*mbpp(), *humaneval()]
    assert len(problems) == 974 + 164
    with CodeGrader(timeout=60.0) as grader:  # MBPP 123 alone takes seconds
        assert not_correct(grader, problems) == []
    programs = sum(isinstance(test, CheckTest) for _, _, tests in problems for test in tests.tests)
    assert programs == 3 + 12  # all others are calls and values


@pytest.mark.slow
@pytest.mark.parametrize("exploit", FUNCTION_EXPLOITS)
def test_exploits_score_nothing_on_any_problem(exploit: str) -> None:
    with CodeGrader(timeout=2.0) as grader:
        for name, _, tests in (*mbpp()[::4], *humaneval()):
            code = FUNCTION_EXPLOITS[exploit].replace("NAME", name)
            assert not grader.grade_code(code, tests).correct, name


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLUTIONS)
def test_contest_programs_are_judged_right(grader: CodeGrader, name: str) -> None:
    tests = contest(name)
    grade = grader.grade_code(SOLUTIONS[name], tests)
    assert grade.correct, grade.detail
    right, wrong = MISTAKES[name]
    assert right in SOLUTIONS[name]
    assert not grader.grade_code(SOLUTIONS[name].replace(right, wrong), tests).correct
    for exploit, code in PROGRAM_EXPLOITS.items():
        assert not grader.grade_code(code.replace("SUM", "0"), tests).correct, exploit


def test_a_contest_program_is_judged_right(grader: CodeGrader) -> None:
    name = "12_B. Correct Solution?"
    tests = contest(name)
    few = CodeTests(tests.tests[:20])
    assert grader.grade_code(SOLUTIONS[name], few).correct
    assert not grader.grade_code('print("OK")', few).correct
    assert not grader.grade_code('print("WRONG_ANSWER")', few).correct
