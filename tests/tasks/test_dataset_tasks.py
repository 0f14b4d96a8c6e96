"""Every task over a data set: what it makes of rows, of splits, of answers."""

from __future__ import annotations

import base64
import importlib
import json
import pickle
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elpo.graders.grade import Grade, Verdict
from elpo.interfaces import InfrastructureFault, Split
from elpo.tasks.check import SPLITS
from elpo.tasks.dataset import DatasetTask
from elpo.tasks.livecodebench import unpack_tests
from elpo.tasks.loading import BUILT_IN, load_task
from elpo.types import Problem, Step, StopReason, ToolResult, ToolStatus
from tests.tasks.datasets import FIXTURES, PATHS, fixture_task
from tests.tasks.test_rows import Hub

EMPTY = np.zeros(0, np.float32)


def load_class(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def final(text: str, result: ToolResult | None = None) -> list[Step]:
    return [Step(EMPTY.astype(int), EMPTY.astype(bool), EMPTY, EMPTY, text, None, result)]


def sizes(task: Any) -> dict[Split, int]:
    return {split: len(task.problems(split, 10_000)) for split in SPLITS}


def test_every_built_in_task_over_a_data_set_has_a_fixture() -> None:
    classes = {name: load_class(target) for name, target in BUILT_IN.items()}
    assert {name for name, found in classes.items() if issubclass(found, DatasetTask)} == set(PATHS)
    assert all(found.name == name for name, found in classes.items())


@pytest.mark.parametrize(
    ("name", "train", "validation", "test"),
    [
        ("gsm8k", 38, 2, 4),
        ("math", 29, 1, 4),
        ("math500", 0, 0, 3),
        ("aime24", 0, 0, 3),
        ("aime25", 0, 0, 3),
        ("gpqa", 0, 0, 4),
        ("mr_ben", 16, 2, 2),
        ("livecodebench", 0, 0, 5),
        ("humaneval", 0, 0, 4),
        ("mbpp", 3, 1, 3),
        ("agent_rl", 37, 1, 2),
    ],
)
def test_splits(name: str, train: int, validation: int, test: int) -> None:
    task = fixture_task(name)
    assert sizes(task) == {"train": train, "validation": validation, "test": test}
    assert not task.bad_rows


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("gsm8k", ["372", "1240", "2015", "2790"]),
        ("math", ["\\frac{7}{2}", "\\pm\\sqrt{5}", "(-3,3)", "\\sqrt{2}"]),
        ("math500", ["81", "\\frac{1}{8}", "\\frac12"]),
        ("aime24", ["50", "343", "90"]),
        ("aime25", ["512", "100", "35"]),
    ],
)
def test_answers(name: str, answers: list[str]) -> None:
    assert [problem.answer for problem in fixture_task(name).problems("test", 10)] == answers


@pytest.mark.parametrize("name", PATHS)
def test_the_prompt_can_be_replaced(name: str) -> None:
    plain = fixture_task(name).problems("test", 1)[0].messages
    options = {"prompt": "P {question} {x}"}
    if name == "livecodebench":
        options["program_prompt"] = options["prompt"]
    asked = fixture_task(name, **options).problems("test", 1)[0].messages
    assert [message["role"] for message in plain] == ["user"]
    text = asked[0]["content"]
    assert text.startswith("P ") and text.endswith(" {x}")
    assert text[2:-4] in plain[0]["content"]  # the question, with other words around it
    with pytest.raises(ValueError, match=r"needs the place \{question\} exactly once, not 0 times"):
        fixture_task(name, prompt="no place")


def test_prompts_ask_for_what_the_grader_reads() -> None:
    def asked(name: str) -> str:
        return "".join(p.messages[0]["content"] for p in fixture_task(name).problems("test", 3))

    assert all("\\boxed{}" in asked(name) for name in ("gsm8k", "math", "aime24"))
    assert 'a line "Answer: X"' in asked("gpqa") and "\nA. canaryoption" in asked("gpqa")
    assert all("```python" in asked(name) for name in ("livecodebench", "humaneval", "mbpp"))
    assert "standard input" in asked("livecodebench") and "standard input" not in asked("mbpp")
    assert "\nassert largest([1, 3, 2]) == 3\n" in asked("mbpp") and "[5, 5]" not in asked("mbpp")


def test_limit_and_num() -> None:
    task = fixture_task("gsm8k", limit=3)
    assert sizes(task) == {"train": 3, "validation": 2, "test": 3}
    assert len(task.problems("train", 2)) == 2
    assert task.problems("train", 3) == fixture_task("gsm8k").problems("train", 3)


def test_a_problem_keeps_its_split_whatever_else_is_in_the_source(tmp_path: Path) -> None:
    lines = (FIXTURES / "gsm8k/train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[::-2]).replace("loaves a day", "loaves  a\\tday"))
    task = load_task("gsm8k", {"path": str(tmp_path)})
    splits = {p.id: s for s in SPLITS[:2] for p in fixture_task("gsm8k").problems(s, 99)}
    some = {p.id: s for s in SPLITS[:2] for p in task.problems(s, 99)}
    assert len(some) == 20 and some.items() <= splits.items()


def test_one_file_is_cut_three_ways() -> None:
    task = load_task(
        "gsm8k",
        {"path": str(FIXTURES / "gsm8k/train.jsonl"), "validation_share": 0.3, "test_share": 0.3},
    )
    num = sizes(task)
    assert sum(num.values()) == 40 and all(5 <= n <= 25 for n in num.values())
    with pytest.raises(ValueError, match="leave nothing to train on"):
        load_task("gsm8k", {"validation_share": 0.5, "test_share": 0.5})


def test_a_test_question_is_never_trained_on(tmp_path: Path) -> None:
    text = (FIXTURES / "gsm8k/test.jsonl").read_text()
    (tmp_path / "test.jsonl").write_text(text)
    (tmp_path / "train.jsonl").write_text(text + (FIXTURES / "gsm8k/train.jsonl").read_text())
    assert sizes(load_task("gsm8k", {"path": str(tmp_path)})) == {"train": 38, "validation": 2, "test": 4}


def test_a_missing_split_is_said_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text((FIXTURES / "math/test.jsonl").read_text())
    task = load_task("math", {"path": str(tmp_path)})
    assert len(task.problems("test", 10)) == 4
    with pytest.raises(ValueError, match=r"has no file train\.jsonl"):
        task.problems("train", 10)


def test_bad_rows_are_listed_without_their_content(tmp_path: Path) -> None:
    good = (FIXTURES / "gsm8k/test.jsonl").read_text()
    bad = ['{"question": "SECRET"}', '{"question": "SECRET", "answer": "no number"}', "SECRET", "3"]
    contested = good.splitlines()[0].replace("#### 372", "#### 373")
    (tmp_path / "test.jsonl").write_text("\n".join([good.rstrip(), *bad, contested, good]))
    task: Any = load_task("gsm8k", {"path": str(tmp_path)})
    with pytest.warns(UserWarning, match=r"gsm8k: 5 of 13 rows left out, the first: test\.jsonl:5: answer: "):
        problems = task.problems("test", 10)
    assert [problem.answer for problem in problems] == ["1240", "2015", "2790"]
    assert [row.place for row in task.bad_rows] == [f"test.jsonl:{n}" for n in (5, 6, 7, 8, 9)]
    assert "SECRET" not in str(task.bad_rows)


def test_a_source_of_nothing_but_bad_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"problem": "x", "answer": "1"}\n')
    task = load_task("gsm8k", {"path": str(tmp_path)})
    with pytest.raises(
        ValueError, match=r"none of 1 rows can be used; test\.jsonl:1: question: Field required"
    ):
        task.problems("test", 1)
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(ValueError, match="there are no rows"):
        load_task("gsm8k", {"path": str(tmp_path / "test.jsonl")}).problems("test", 1)


def test_grading_follows_the_stop_and_the_rewards() -> None:
    task = fixture_task("gsm8k", reward_correct=2.0, reward_wrong=-0.5)
    problem = task.problems("test", 1)[0]
    right = "\\boxed{372}"
    outcome = task.grade(problem, final(right), StopReason.ANSWER)
    assert (outcome.reward, outcome.correct, outcome.answer) == (2.0, True, "372")
    for stop in set(StopReason) - {StopReason.ANSWER}:
        cut = task.grade(problem, final(right), stop)
        assert (cut.reward, cut.correct, cut.stop) == (-0.5, False, stop)
    after_a_call = final(right, ToolResult(ToolStatus.OK, right))
    assert not task.grade(problem, after_a_call, StopReason.ANSWER).correct
    assert not task.grade(problem, [], StopReason.ANSWER).correct
    with pytest.raises(ValueError, match="is not below reward_correct"):
        fixture_task("gsm8k", reward_wrong=1)


def test_a_failing_grader_is_nobodys_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    task = fixture_task("gsm8k")
    problem = task.problems("test", 1)[0]
    monkeypatch.setattr(task, "judge", lambda *_: Grade(Verdict.FAULT, detail="no workers"))
    with pytest.raises(InfrastructureFault, match=rf"grading {problem.id}: no workers"):
        task.grade(problem, final("\\boxed{1}"), StopReason.ANSWER)


def test_partial_credit() -> None:
    half = final("```python\ndef largest(xs):\n    return xs[0] if len(xs) != 3 else 0\n```")
    for partial, reward in ((True, -1 + 2 * 2 / 3), (False, -1)):
        task = fixture_task("mbpp", partial_credit=partial)
        outcome = task.grade(task.problems("test", 1)[0], half, StopReason.ANSWER)
        task.close()
        assert outcome.reward == pytest.approx(reward) and not outcome.correct


def test_science_may_search() -> None:
    assert fixture_task("mr_ben").tool_names == ("python",)
    assert fixture_task("gpqa", search=True).tool_names == ("python", "search")


def test_gpqa_stores_its_permutation() -> None:
    correct = ["neon", "neutron", "mitochondrion", "Planck's"]
    orders = []
    for seed in range(20):
        for problem, right in zip(fixture_task("gpqa", seed=seed).problems("test", 4), correct, strict=True):
            lines = [line for line in problem.messages[0]["content"].splitlines() if "canaryoption" in line]
            assert lines["ABCD".index(problem.answer)] == f"{problem.answer}. canaryoption {right}"
            order = problem.metadata["order"]
            assert sorted(order) == [0, 1, 2, 3] and order["ABCD".index(problem.answer)] == 0
            orders.append(tuple(order))
    assert len(set(orders)) > 12
    assert fixture_task("gpqa").problems("test", 4) == fixture_task("gpqa").problems("test", 4)


@pytest.mark.parametrize(("name", "stream"), [("gpqa", True), ("aime24", False)])
def test_of_confidential_data_the_hub_leaves_no_copy(
    name: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    task = load_task(name, {})
    with pytest.raises(ValueError, match="none of 2 rows can be used"):  # the rows of another schema
        task.problems("test", 1)
    assert [call[-1] for call in hub.calls] == [stream]


def test_bad_rows_of_gpqa_tell_nothing(tmp_path: Path) -> None:
    text = (FIXTURES / "gpqa.csv").read_text()
    alike = text.splitlines()[1].replace("canaryoption iron", "canaryoption neon").replace("one:", "five:")
    (tmp_path / "gpqa.csv").write_text(f"{text}{alike}\nrec9,canaryquestion six\n")
    task: Any = load_task("gpqa", {"path": str(tmp_path / "gpqa.csv")})
    with pytest.warns(UserWarning, match="2 of 6 rows left out") as caught:
        problems = task.problems("test", 10)
    told = str(task.bad_rows) + str([str(warning.message) for warning in caught])
    assert len(task.bad_rows) == 2 and "canary" not in told
    assert all(problem.metadata["confidential"] is True for problem in problems)
    assert all("canary" not in problem.id for problem in problems)


def test_mr_ben_reads_questions_and_nothing_else() -> None:
    task = fixture_task("mr_ben")
    problems = [problem for split in SPLITS for problem in task.problems(split, 99)]
    assert "secret" not in repr(problems)
    assert len(problems) == 20  # one for the rows of two models; coding has no options
    by_question = {problem.messages[0]["content"].split("\n\n")[1]: problem for problem in problems}
    problem = by_question["What is the SI unit of force?"]
    assert "\nA. newton\nB. joule\n" in problem.messages[0]["content"]
    assert problem.answer == "A"  # as the experts corrected it, not as it was


def test_mr_ben_leaves_out_contested_questions(tmp_path: Path) -> None:
    rows = json.loads((FIXTURES / "mr_ben/physics.json").read_text())
    rows["u1"][1]["Ground_Truth_Answer_Modified"] = "D"  # the experts disagree
    rows["u2"][0]["Ground_Truth_Answer_Modified"] = rows["u2"][1]["Ground_Truth_Answer_Modified"] = "AC"
    rows["u3"][1]["Question"] += " Really?"  # one model was asked otherwise
    (tmp_path / "physics.json").write_text(json.dumps(rows))
    task: Any = load_task("mr_ben", {"path": str(tmp_path / "physics.json")})
    with pytest.warns(UserWarning, match="4 of 40 rows left out"):
        assert sum(sizes(task).values()) == 18


def test_mbpp_splits_go_by_number() -> None:
    task = fixture_task("mbpp")
    ids = {split: [problem.id for problem in task.problems(split, 9)] for split in SPLITS}
    assert ids == {
        "train": ["mbpp-2", "mbpp-601", "mbpp-974"],
        "validation": ["mbpp-511"],
        "test": ["mbpp-11", "mbpp-12", "mbpp-510"],
    }


def test_the_tests_of_a_program_are_stored_as_their_number() -> None:
    problem = fixture_task("livecodebench").problems("test", 1)[0]
    assert str(problem.metadata["tests"]) == "HiddenTests(num=3)"


CASES = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def test_packed_tests_are_read_without_unpickling() -> None:
    plain = unpack_tests(json.dumps(CASES))
    for protocol in range(1, pickle.HIGHEST_PROTOCOL + 1):
        assert unpack_tests(packed(pickle.dumps(json.dumps(CASES), protocol))) == plain
    assert unpack_tests(packed(pickle.dumps(json.dumps(CASES * 30_000)))) == plain * 30_000
    assert unpack_tests("[]") == []


class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched-by-unpickling"),))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pickle.dumps(Hostile()), "refused"),
        (pickle.dumps([json.dumps(CASES)]), "refused"),
        (pickle.dumps((json.dumps(CASES), "b")), "refused"),
        (pickle.dumps(3), "refused"),
        (b"\x80\x04\x8c", "refused"),
        (b"", "refused"),
        (b"garbage", "refused"),
        (pickle.dumps("not JSON"), "1 mistakes"),
        (pickle.dumps(json.dumps([{"input": 1}])), "mistakes"),
    ],
)
def test_other_pickles_are_refused(
    data: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"test cases: .*{reason}"):
        unpack_tests(packed(data))
    assert not list(tmp_path.iterdir())


def test_test_cases_that_are_no_zlib_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "%%%", "abcd", packed(b"x" * 99)[:16]):
        with pytest.raises(ValueError, match="test cases: "):
            unpack_tests(text)
    monkeypatch.setattr("elpo.tasks.livecodebench.MAX_TEST_BYTES", 1000)
    with pytest.raises(ValueError, match="longer than 1000 bytes"):
        unpack_tests(packed(pickle.dumps("[" + " " * 10**6 + "]")))


def test_options_of_a_task_are_checked() -> None:
    with pytest.raises(ValueError, match=r"task\.options\.pth: .*did you mean 'path'"):
        load_task("gsm8k", {"pth": "x"})
    with pytest.raises(ValueError, match=r"task\.options\.path: Field required"):
        load_task("mr_ben", {})


def test_problems_are_values() -> None:
    first, again = (fixture_task("math").problems("test", 4) for _ in range(2))
    assert first == again and all(isinstance(problem, Problem) for problem in first)
