"""Whole evaluations of the tiniest model: what is kept, what is printed, and going on after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from elpo.evaluation import runner
from elpo.evaluation.runner import Evaluation, evaluate_run
from elpo.recipes import load_config
from elpo.training.checkpoint import Checkpoints
from elpo.training.progress import SilentProgress
from elpo.training.trainer import train
from elpo.types import Problem
from tests.coins import Coins, coins_config
from tests.evaluation.killed_evaluation import evaluation_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cold start of the coins, half of which succeeds."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(coins_config(folder, "rl.num_steps=0"))
    return folder


@pytest.fixture(scope="module")
def straight(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The evaluation that nothing happened to."""
    return evaluate_run(evaluation_config(run), run, tmp_path_factory.mktemp("straight"))


def records(folder: Path) -> list[dict[str, Any]]:
    """Every record, without what a clock made."""
    lines = [line for file in sorted(folder.glob("trajectories/*")) for line in file.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    for record in found:
        for step in record.get("steps", ()):
            if step["tool_result"]:
                del step["tool_result"]["seconds"]
    return found


def result(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "result.json").read_text())
    del found["date"]
    return dict(found)


class Count(SilentProgress):
    def __init__(self) -> None:
        self.started: list[int] = []
        self.updates: list[int] = []

    def start(self, phase: str, num_steps: int, done: int = 0) -> None:
        self.started.append(done)

    def update(self, step: int, metrics: Any) -> None:
        assert 0 <= metrics["success/heldout"] <= 1
        self.updates.append(step)


def test_what_an_evaluation_leaves(straight: Evaluation) -> None:
    assert sorted(path.name for path in (straight.folder / "trajectories").iterdir()) == [
        "000000.jsonl", "000004.jsonl", "000008.jsonl",
    ]  # fmt: skip
    found = records(straight.folder)
    assert [record["problem"] for record in found] == [f"bag-{700 + i // 4}" for i in range(40)]
    assert [record["sample"] for record in found] == [0, 1, 2, 3] * 10
    first = next(record for record in found if record["correct"])
    step = first["steps"][0]
    assert "<tool_call>" in step["text"] and step["tool_call"]["name"] == "python"
    assert step["tool_result"] == {"status": "ok", "output": "[1]"}
    assert first["sampled_tokens"] == sum(step["sampled_tokens"] for step in first["steps"])
    assert first["feedback_tokens"] > 0 and first["prompt_tokens"] > 0 and first["stop"] == "answer"
    told = result(straight.folder)
    share = sum(record["correct"] for record in found) / 40
    assert 0.1 < share < 0.9, "a policy worth measuring"
    metrics = told["metrics"]
    assert metrics["pass@1"]["value"] == pytest.approx(share)
    assert metrics["pass@1"]["low"] < share < metrics["pass@1"]["high"]
    assert metrics["pass@4"]["value"] > share
    assert (told["num_problems"], told["samples_per_problem"], told["faults"]) == (10, 4, 0)
    spent = sum(record["sampled_tokens"] for record in found)
    assert metrics["tokens/per_solved"]["value"] == pytest.approx(spent / (40 * share))
    assert sum(row["samples"] for row in told["accuracy_by_calls"]) == 40
    assert not any(name.startswith("major") for name in metrics), "the coins have no answer to vote on"


@pytest.mark.parametrize("num_problems", [2, 7])
def test_a_killed_evaluation_goes_on_with_the_same_numbers(
    run: Path, straight: Evaluation, tmp_path: Path, num_problems: int
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.evaluation.killed_evaluation", str(run), str(out)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run([*command, str(num_problems)], env=environment, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert len(list(out.glob("trajectories/*.jsonl"))) == num_problems // 4
    assert not (out / "result.json").exists()
    count = Count()
    again = evaluate_run(evaluation_config(run), run, out, count)
    assert count.started == [num_problems // 4 * 4] and count.updates[-1] == 10
    assert again.summary == straight.summary
    assert records(out) == records(straight.folder)
    assert result(out) == result(straight.folder)


def test_a_finished_evaluation_is_only_read(
    run: Path, straight: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "model_source", lambda *_: pytest.fail("it loads the model"))
    again = evaluate_run(evaluation_config(run), run, straight.folder)
    assert again.summary == straight.summary and again.num_sampled == 0 < straight.num_sampled
    fewer = evaluate_run(evaluation_config(run, "evaluation.num_problems=6"), run, straight.folder)
    assert fewer.summary.num_problems == 6
    evaluate_run(evaluation_config(run), run, straight.folder)


def test_more_problems_continue_it(run: Path, straight: Evaluation, tmp_path: Path) -> None:
    evaluate_run(evaluation_config(run, "evaluation.num_problems=6"), run, tmp_path / "out")
    count = Count()
    grown = evaluate_run(evaluation_config(run), run, tmp_path / "out", count)
    assert count.started == [4]  # the block that was too short is sampled again
    assert grown.summary == straight.summary and records(grown.folder) == records(straight.folder)


def test_other_settings_have_another_folder(run: Path, straight: Evaluation) -> None:
    few = ("evaluation.num_problems=2", "evaluation.samples_per_problem=1", "rollout.max_turns=1")
    first = evaluate_run(evaluation_config(run, *few), run)
    assert first.folder.parent == run / "evaluation" and first.folder.name.startswith("rl-000000-")
    assert first.summary.estimates["pass@1"].value == 0.0, "one turn is not enough"
    other = evaluate_run(evaluation_config(run, *few, "run.seed=9"), run)
    assert other.folder != first.folder
    with pytest.raises(ValueError, match=r"made with other settings \(seed\); .*--out"):
        evaluate_run(evaluation_config(run, "run.seed=9"), run, straight.folder)
    with pytest.raises(ValueError, match="holds no evaluation"):
        evaluate_run(evaluation_config(run), run, run)


def test_a_model_folder(run: Path, straight: Evaluation, tmp_path: Path, monkeypatch) -> None:
    best = Checkpoints(run / "checkpoints").path("best")
    assert best is not None
    monkeypatch.chdir(tmp_path)
    config = evaluation_config(run, f"model.path={str(best / 'model')!r}")
    found = evaluate_run(config)
    assert found.folder.parent == Path("runs/evaluation")
    assert found.summary == straight.summary


def test_changed_weights_are_other_settings(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    config = load_config(None, [f"model.path={str(tmp_path)!r}"])
    before = runner.sampling_settings(config, None)
    assert before == runner.sampling_settings(config, None)
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert before["files"] != runner.sampling_settings(config, None)["files"]


def test_damage_is_reported_with_a_remedy(run: Path, straight: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "settings.json").write_bytes((straight.folder / "settings.json").read_bytes())
    (tmp_path / "trajectories" / "000004.jsonl").write_text('{"problem": "bag-704"}\n')
    with pytest.raises(ValueError, match=r"000004\.jsonl is damaged .* delete it"):
        evaluate_run(evaluation_config(run), run, tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        evaluate_run(evaluation_config(run), run, tmp_path)


def test_nothing_confidential_is_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Coins.problem

    def secret(self: Coins, number: int) -> Problem:
        problem = plain(self, number)
        return Problem(problem.id, problem.messages, "", {**problem.metadata, "confidential": True})

    monkeypatch.setattr(Coins, "problem", secret)
    found = evaluate_run(evaluation_config(run, "evaluation.num_problems=2"), run, tmp_path / "out")
    text = "".join(path.read_text() for path in found.folder.rglob("*.json*"))
    for fragment in ("bag.append", "Fill bag", "tool_call>", "[1]"):
        assert fragment not in text
    assert '"status": "ok"' in text


def test_every_reported_metric_is_explained(straight: Evaluation) -> None:
    section = (ROOT / "docs/METRICS.md").read_text().split("## `elpo eval`")[1].split("\n## ")[0]
    explained = {
        name
        for row in re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", section, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    }
    reported = {re.sub(r"@\d+", "@K", name) for name in straight.summary.estimates}
    elsewhere = {"reward/mean", "turns/mean", "entropy/mean", "tool/failed_share"}
    assert explained == (reported | {"major@K"}) - elsewhere
    assert elsewhere <= reported and all(f"`{name}`" in section for name in elsewhere)
