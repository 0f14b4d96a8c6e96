"""Data in the format of Open-AgentRL-30K: graded by source, and read however much of it is broken."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from elpo.cli import main
from elpo.graders.grade import Verdict
from elpo.tasks.agent_rl import AgentRL, code_tests
from elpo.tasks.loading import load_task
from elpo.types import Problem, StopReason
from tests.tasks.ledger_transcripts import step

ECHO = {"inputs": ["3\n", "4\n"], "outputs": ["9\n", "16\n"]}
SQUARE = {"fn_name": "square", "inputs": [[3], [4]], "outputs": [9, 16]}
CHECK = {
    "import_prefix": "import math\n",
    "entry_point": "Solution().square",
    "test_code": "def check(candidate):\n    assert candidate(x=3) == 9\n    assert candidate(x=4) == 16\n",
}
METHOD = "class Solution:\n    def square(self, x):\n        return math.prod([x, x])"
PROGRAM, FUNCTION = "print(int(input()) ** 2)", "def square(x):\n    return x * x"


def row(source: str, truth: Any, question: str = "", **changes: Any) -> dict[str, Any]:
    text = truth if isinstance(truth, str) else json.dumps(truth)
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": question or f"Solve this {source} problem: {text[:20]}"}],
        "ability": "any",
        "reward_model": {"ground_truth": text, "style": "rule"},
        "extra_info": {"index": "7", "split": "train"},
        **changes,
    }


GOOD = (
    (row("math_dapo", "34"), "so \\boxed{34}", "so \\boxed{35}"),
    (row("mega-science", "2.5"), "\\boxed{5/2}", "\\boxed{5}"),
    (row("gpqa_diamond", "C"), "\\boxed{C}", "\\boxed{B}"),
    (row("skywork-code", ECHO), f"```python\n{PROGRAM}\n```", "```python\nprint(9)\n```"),
    (row("taco", SQUARE), f"```python\n{FUNCTION}\n```", "```python\ndef square(x): return 9\n```"),
    (row("leetcode", CHECK), f"```python\n{METHOD}\n```", "```python\nclass Solution: pass\n```"),
    (row("code_asserts", ["assert square(3) == 9"]), f"```python\n{FUNCTION}\n```", "\\boxed{9}"),
)


def write(folder: Path, rows: list[dict[str, Any]], name: str = "train.parquet") -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    return folder / name


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentRL]:
    path = write(tmp_path_factory.mktemp("rl"), [good for good, *_ in GOOD])
    options = {"path": str(path), "validation_share": 0.0, "test_share": 0.0, "timeout": 5.0}
    task: Any = load_task("agent_rl", options)
    yield task
    task.close()


@pytest.mark.parametrize("index", range(len(GOOD)), ids=[good["data_source"] for good, *_ in GOOD])
def test_the_source_decides_the_grader(task: AgentRL, index: int) -> None:
    problem = task.problems("train", 100)[index]
    _, right, wrong = GOOD[index]
    assert task.grade(problem, [step(right)], StopReason.ANSWER).correct
    outcome = task.grade(problem, [step(wrong)], StopReason.ANSWER)
    assert not outcome.correct and outcome.reward == -1
    assert task.judge(problem, "nothing").verdict is Verdict.NO_ANSWER
    assert problem.messages[0]["content"] == GOOD[index][0]["prompt"][0]["content"]


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"data_source": None}, "data_source"),
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [{"role": "assistant", "content": "hello"}]}, "the last message is not the user's"),
    ({"reward_model": {"ground_truth": "", "style": "rule"}}, "ground_truth"),
    ({"data_source": "knitting"}, "no grader is known for 'knitting'"),
    ({"data_source": "skywork-code"}, "must be JSON"),
    ({"data_source": "gpqa"}, "not the letter"),
)


def test_every_tenth_row_may_be_broken(tmp_path: Path) -> None:
    rows = [row("math_dapo", str(i), f"what is {i}?") for i in range(9 * len(BAD))]
    for i, (change, _) in enumerate(BAD):
        rows.insert(10 * i + 5, row("math_dapo", "x+1", f"broken {i}", **change))
    task: Any = load_task("agent_rl", {"path": str(write(tmp_path, rows))})
    with pytest.warns(UserWarning, match=rf"{len(BAD)} of {10 * len(BAD)} rows left out"):
        found = [
            problem for split in ("train", "validation", "test") for problem in task.problems(split, 1000)
        ]
    assert len(found) == 9 * len(BAD)
    assert [bad.place for bad in task.bad_rows] == [f"train.parquet:{10 * i + 6}" for i in range(len(BAD))]
    for bad, (_, reason) in zip(task.bad_rows, BAD, strict=True):
        assert reason in bad.reason


def test_a_file_that_was_cut_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, [row("math_dapo", str(i), f"q{i}") for i in range(50)])
    path.write_bytes(path.read_bytes()[:-100])
    settings = ["task.name=agent_rl", f"task.options.path={path}", f"run.dir={tmp_path / 'run'}"]
    assert main(["train", *settings, "run.device=cpu", "model.path=none/none"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "train.parquet cannot be read" in err and "Traceback" not in err


def test_graders_of_other_sources_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, [row("knitting", "12", f"how many stitches {i}?") for i in range(3)])
    options = {"path": str(path), "graders": {"knitting": "value"}, "test_share": 0.0}
    task: Any = load_task("agent_rl", {**options, "validation_share": 0.0, "prompt": "Be quick. {question}"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem: Problem = task.problems("train", 1)[0]
    assert problem.metadata["grader"] == "value" and problem.answer == "12"
    assert problem.messages[0]["content"] == "Be quick. how many stitches 0?"
    with pytest.raises(ValueError, match=r"graders\.knitting"):
        load_task("agent_rl", {"path": str(path), "graders": {"knitting": "taste"}})


def test_rows_of_jsonl_with_json_in_them(tmp_path: Path) -> None:
    """Evaluation sets store mappings as JSON text, and whole numbers as numbers."""
    good = row("aime2025", "70", "q")
    rows = [
        {**good, "prompt": json.dumps(good["prompt"]), "reward_model": json.dumps({"ground_truth": 70})},
        row("livecodebench", "x", "p", reward_model={"ground_truth": ECHO}),
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = str(tmp_path / "rows.jsonl")
    task: Any = load_task("agent_rl", {"path": path, "validation_share": 0.0, "test_share": 0.0})
    value, code = task.problems("train", 5)
    assert value.answer == "70" and code.metadata["tests"].num == 2


@pytest.mark.parametrize("truth", ["{}", "[]", "[1]", '{"inputs": [], "outputs": []}', '"x"'])
def test_tests_that_are_none(truth: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        code_tests(truth)
