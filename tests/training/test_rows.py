"""Every row of the table of algorithms trains, and what it spent is in the record."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from elpo.algorithms.registry import ALGORITHMS
from elpo.cli import main
from elpo.config import Config
from elpo.training.run_folder import RunFolder
from elpo.training.trainer import train
from tests.coins import coins_config


def one_step(folder: Path, model: Path, *overrides: str) -> tuple[Config, dict[str, Any]]:
    """The settings and the record of a run of one RL step that starts from `model`."""
    config = coins_config(
        folder,
        f"model.path={str(model)!r}",
        "sft.num_steps=0",
        "rl={num_steps: 1, problems_per_step: 2, problems_per_minibatch: 1, num_epochs: 1}",
        "evaluation={num_problems: 1, samples_per_problem: 1}",
        *overrides,
    )
    train(config)
    (record,) = RunFolder(folder).read_metrics("rl")
    return config, record


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_trains_within_its_budget(name: str, cold_start: Path, tmp_path: Path) -> None:
    enough = ["algorithm.max_calls=[2]"] * (name == "torl")  # its one call is too few for this task
    config, record = one_step(tmp_path / "run", cold_start, f"algorithm.name={name}", *enough)
    assert math.isfinite(record["loss"]) and math.isfinite(record["grad/norm"])
    assert record["updates"] > 0 and record["grad/norm"] > 0, "nothing was learned from"
    one_round = config.rl.problems_per_step * config.algorithm.num_rollouts
    rounds = {"every": 1, "open": config.algorithm.prompts.max_rounds, "valuable": 2}
    assert one_round <= record["rollouts/total"] <= one_round * rounds[config.algorithm.prompts.name]
    assert record["rollouts/discarded"] <= record["rollouts/total"] - record["faults/count"]
    assert (record["localization/searches"] > 0) == (config.algorithm.strategy.name in ("bel", "posterior"))


def test_a_run_ends_before_it_spends_more_than_its_rollouts(cold_start: Path, tmp_path: Path) -> None:
    """Dynamic sampling included; a larger budget continues the run."""
    folder = RunFolder(tmp_path / "run")
    one_round = 4 * 6

    def spent(max_rollouts: int, resume: bool) -> list[float]:
        config = coins_config(
            folder.path,
            f"model.path={str(cold_start)!r}",
            "sft.num_steps=0",
            "algorithm.name=dapo",
            f"rl.max_rollouts={max_rollouts}",
            "evaluation={every: 0, num_problems: 1, samples_per_problem: 1}",
        )
        result = train(config, resume=resume)
        assert math.isfinite(result.success_after)
        steps = folder.read_metrics("rl")
        assert folder.read_metrics("evaluation")[-1]["step"] == steps[-1]["step"]
        for step in steps:
            assert step["rollouts/total"] % one_round == 0
            kept = step["rollouts/total"] - step["rollouts/discarded"]
            assert 0 <= kept <= one_round and kept % 6 == 0
            assert (step["tokens/discarded"] > 0) == (step["rollouts/discarded"] > 0)
            assert step["tokens/discarded"] < step["tokens/sampled"]
        return [step["rollouts/total"] for step in steps]

    first = spent(2 * one_round + 5, resume=False)
    assert sum(first) == 2 * one_round
    more = spent(3 * one_round, resume=True)
    assert more[: len(first)] == first and sum(more) == 3 * one_round
    with pytest.raises(ValueError, match="less than one step needs: 24"):
        spent(one_round - 1, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_trains_on_the_ledger(name: str, tmp_path: Path) -> None:
    """From the command line, with the settings of the row itself."""
    settings = [
        f"run.dir={str(tmp_path / 'run')!r}",
        "run.device=cpu",
        "model.tiny={hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, intermediate_size: 64}",
        "task.options={min_lines: 4, max_lines: 4}",
        "rollout={num_slots: 32, max_tokens: 512, max_turn_tokens: 32}",
        "sft={num_steps: 20, num_demonstrations: 200, batch_size: 8}",
        "rl={num_steps: 1, problems_per_step: 2, problems_per_minibatch: 1}",
        "evaluation={num_problems: 1, samples_per_problem: 1}",
    ]
    assert main(["train", *settings, f"algorithm.name={name}"]) == 0
    (record,) = RunFolder(tmp_path / "run").read_metrics("rl")
    assert math.isfinite(record["loss"]) and record["rollouts/total"] <= 10 * 2 * 16
