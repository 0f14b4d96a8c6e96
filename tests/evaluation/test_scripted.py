"""An evaluation of a policy whose answers are known, over every loader and grader."""

from __future__ import annotations

import random
from typing import Any

import pytest

from elpo.evaluation.scripted import ScriptedSuccess, check_evaluation, scripted_success
from elpo.tasks.check import SPLITS
from elpo.tasks.loading import load_task
from elpo.types import Outcome, Problem
from tests.tasks.datasets import PATHS, real_task, shared_task
from tests.tasks.test_check import Adder, Sums


def played(task: Any, tools: Any, num: int, others: float, seed: int = 0) -> ScriptedSuccess:
    problems = [problem for split in SPLITS for problem in task.problems(split, num)]
    return scripted_success(task, tools, problems, others, seed)


@pytest.mark.parametrize("name", PATHS)
def test_success_is_what_was_played(name: str) -> None:
    task = shared_task(name)
    num = sum(len(task.problems(split, 20)) for split in SPLITS)
    right, wrong = played(task, {}, 20, others=0.0), played(task, {}, 20, others=1.0)
    assert (right.own, right.own_right, right.others) == (num, num, 0) and right.exact
    assert (wrong.others, wrong.others_right, wrong.own) == (num, 0, 0) and wrong.exact


def test_a_rate_in_between_and_tool_calls() -> None:
    adder = Adder()
    adder.schema = {"type": "function", "function": {"name": "adder", "parameters": {"type": "object"}}}
    half = played(Sums(), {"adder": adder}, 40, others=0.5, seed=1)
    assert half.own + half.others == 120 and 40 <= half.own <= 80 and half.exact
    assert half != played(Sums(), {"adder": adder}, 40, others=0.5, seed=2)


def test_a_grader_that_errs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    adder: Any = Adder()
    adder.schema = {"type": "function", "function": {"name": "adder", "parameters": {"type": "object"}}}
    assert not check_evaluation(Sums(), {"adder": adder}, Sums().problems("test", 30)).findings
    monkeypatch.setattr(Sums, "grade", lambda *_: Outcome(1.0, True))
    generous = check_evaluation(Sums(), {"adder": adder}, Sums().problems("test", 30))
    assert len(generous.findings) == 1 and "of other problems were graded right" in generous.findings[0]
    monkeypatch.setattr(Sums, "grade", lambda *_: Outcome(0.0, False))
    stern = check_evaluation(Sums(), {"adder": adder}, Sums().problems("test", 30))
    assert len(stern.findings) == 1 and "own solutions were graded wrong" in stern.findings[0]


def test_without_solutions_there_is_nothing_to_play(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sums, "gold_turns", lambda self, problem: [])
    with pytest.raises(ValueError, match="shows no two different solutions"):
        scripted_success(Sums(), {}, Sums().problems("test", 3), 0.5)
    assert "not checked" in check_evaluation(Sums(), {}, Sums().problems("test", 3)).result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "num"),
    [
        ("gsm8k", "gsm8k", 1319),
        ("math", "math", 500),
        ("mr_ben", "mr_ben", 1000),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", 164),
        ("mbpp", "mbpp/mbpp.jsonl", 1000),
    ],
)
def test_success_is_what_was_played_on_real_data(name: str, path: str, num: int) -> None:
    options = {"timeout": 60.0} if name == "mbpp" else {}  # one of its solutions needs seconds by itself
    task: Any = real_task(name, path, **options)
    splits = ("test",) if name in ("math", "gsm8k") else SPLITS
    problems: list[Problem] = [p for split in splits for p in task.problems(split, 10_000)]
    problems = random.Random(0).sample(problems, min(num, len(problems)))
    found = scripted_success(task, {}, problems, others=0.5)
    task.close()
    assert found.own + found.others == len({repr(problem.messages) for problem in problems})
    assert found.exact


@pytest.mark.parametrize("name", ["ledger", "lookup", "programs"])
def test_the_synthetic_tasks_show_solutions_that_are_right(name: str) -> None:
    from elpo.config import Config, TaskConfig
    from elpo.training.tools import make_tools

    task = load_task(name, {})
    tools = make_tools(task, Config(task=TaskConfig(name=name)))
    try:
        assert played(task, tools, 3, others=0.0).exact and played(task, tools, 3, others=1.0).exact
    finally:
        for tool in tools.values():
            tool.close()
