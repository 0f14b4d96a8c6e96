"""Every row of the table of algorithms trains, and what it spent is in the record."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from elpo.algorithms.registry import ALGORITHMS
from elpo.config import Config
from elpo.training.run_folder import RunFolder
from elpo.training.trainer import train
from tests.coins import coins_config


@pytest.fixture(scope="module")
def cold_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen a few demonstrations: right now and then."""
    folder = tmp_path_factory.mktemp("cold") / "run"
    train(coins_config(folder, "rl.num_steps=0"))
    return next(folder.glob("checkpoints/*/model"))


def one_step(folder: Path, model: Path, *overrides: str) -> tuple[Config, dict[str, Any]]:
    """The settings and the record of a run of one RL step that starts from `model`."""
    config = coins_config(
        folder,
        f"model.path={str(model)!r}",
        "sft.num_steps=0",
        "rl.num_steps=1",
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
