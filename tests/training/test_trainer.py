"""Whole runs of the tiniest model with the real Python tool: what they leave, repeatability, learning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from elpo.cli import main
from elpo.rollout.faults import InfrastructureError
from elpo.tools.python import PythonTool
from elpo.training.checkpoint import Checkpoints
from elpo.training.learner import Learner
from elpo.training.run_folder import RunFolder
from elpo.training.trainer import Result, train
from tests.coins import Coins, coins_config
from tests.training.same_run import assert_same_run, timeless


def test_the_run_is_one_worth_comparing(straight: tuple[RunFolder, Result]) -> None:
    steps = straight[0].read_metrics("rl")
    assert all(step["updates"] > 0 and step["tool/calls"] > 0 for step in steps[1:])
    assert sum(step["localization/searches"] for step in steps) > 0


def test_what_a_run_leaves_reads_back(
    straight: tuple[RunFolder, Result], capsys: pytest.CaptureFixture[str]
) -> None:
    run, result = straight
    assert run.config() == coins_config(run.path)
    assert [line["step"] for line in run.read_metrics("sft")] == list(range(1, 61))
    assert [line["step"] for line in run.read_metrics("rl")] == [1, 2, 3, 4]
    evaluations = run.read_metrics("evaluation")
    assert [line["step"] for line in evaluations] == [0, 2, 4]
    held_out = [line["success/heldout"] for line in evaluations]
    assert (result.success_before, result.success_after) == (held_out[0], held_out[-1])
    assert result.best_success == max(held_out)
    assert run.tree_steps() == [1, 2, 4]
    assert all(len(tree.outcomes) == 6 for step in (1, 2, 4) for tree, _ in run.read_trees(step))
    assert run.tree_steps("evaluation") == [0, 2, 4]
    held = {tuple(t.problem.id for t, _ in run.read_trees(step, "evaluation")) for step in (0, 2, 4)}
    assert held == {tuple(f"bag-{400 + i}" for i in range(4))}  # the same problems every time
    for which in ("last", "best"):
        path = Checkpoints(run.checkpoints).path(which)
        assert path is not None
        model = AutoModelForCausalLM.from_pretrained(path / "model")
        tokenizer = AutoTokenizer.from_pretrained(path / "model")
        prompt = tokenizer("Fill bag 7.", return_tensors="pt")["input_ids"]
        assert model.generate(prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt.shape[1]
        assert tokenizer.chat_template
    assert main(["plot", str(run.path)]) == 0
    assert (run.plots / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert main(["tree", str(run.path), "--text"]) == 0
    assert "bag.append(" in capsys.readouterr().out
    assert main(["eval", str(run.path), "evaluation.num_problems=3", "rollout.num_slots=2"]) == 0
    assert "pass@1" in capsys.readouterr().out


def test_tensorboard_shows_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    short = ("sft.num_steps=2", "rl.num_steps=1", "rl.problems_per_step=2", "run.tensorboard=true")
    train(coins_config(tmp_path / "run", *short))
    run = RunFolder(tmp_path / "run")
    for phase in ("sft", "rl", "evaluation"):
        events = EventAccumulator(str(run.tensorboard / phase)).Reload()
        for line in run.read_metrics(phase):
            for name in line.keys() - {"step", "phase"}:
                (value,) = [e.value for e in events.Scalars(name) if e.step == line["step"]]
                assert value == pytest.approx(line[name], rel=1e-6)


def test_the_same_seed_gives_the_same_run_and_another_one_another(
    straight: tuple[RunFolder, Result], tmp_path: Path
) -> None:
    train(coins_config(tmp_path / "same"))
    assert_same_run(RunFolder(tmp_path / "same"), straight[0])
    train(coins_config(tmp_path / "other", "run.seed=1", "rl.num_steps=1"))
    same = timeless(straight[0])
    other = timeless(RunFolder(tmp_path / "other"))
    assert [line["loss"] for line in other[:5]] != [line["loss"] for line in same[:5]]
    assert other[61] != same[61]


def test_reinforcement_learning_learns(tmp_path: Path) -> None:
    config = coins_config(
        tmp_path / "run",
        "sft.num_steps=80",
        "rl.num_steps=12",
        "rl.problems_per_step=8",
        "rl.problems_per_minibatch=4",
        "algorithm.num_rollouts=8",
        "evaluation.every=0",
        "evaluation.num_problems=64",
    )
    result = train(config)
    assert 0.1 < result.success_before < 0.45  # the demonstrations put gold in both times in a quarter
    assert result.success_after > result.success_before + 0.4


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_task_that_fails_is_not_swallowed_and_closes_the_tools(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    close: Callable[[PythonTool], None] = PythonTool.close
    monkeypatch.setattr(PythonTool, "close", lambda self: (closed.append(True), close(self))[1])
    method = "grade" if stage == "rl" else "problems"

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("in the task")

    monkeypatch.setattr(Coins, method, broken)
    error = InfrastructureError if stage == "rl" else ZeroDivisionError  # each grading is a fault of its own
    with pytest.raises(error, match="in the task"):
        train(coins_config(tmp_path / "run", "sft.num_steps=2"))
    assert closed == [True]


@pytest.mark.parametrize(
    ("wanted", "limit", "steps"),
    [("auto", None, [1]), ("auto", -1.0, [1, 2, 3]), ("sampler", -1.0, []), ("recompute", None, [1, 2, 3])],
)
def test_old_log_probabilities_are_recomputed_where_the_sampler_is_not_known_to_agree(
    wanted: str,
    limit: float | None,
    steps: list[int],
    cold_start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if limit is not None:
        monkeypatch.setattr("elpo.training.trainer.MAX_SAMPLER_DIFFERENCE", limit)
    recomputed: list[int] = []
    folder = RunFolder(tmp_path / "run")
    score: Callable[..., Any] = Learner.logprobs

    def watched(self: Learner, parts: Any) -> Any:
        recomputed.append(len(folder.read_metrics("rl")) + 1)
        return score(self, parts)

    monkeypatch.setattr(Learner, "logprobs", watched)
    start = (f"model.path={str(cold_start)!r}", "sft.num_steps=0", "rl.num_steps=3", "evaluation.every=0")
    train(coins_config(folder.path, *start, f"rl.old_logprobs={wanted}"))
    assert recomputed == steps
    assert all(
        line["logprob/sampler_difference"] < 1e-5 for line in folder.read_metrics("rl") if line["updates"]
    )
