"""The run that others are compared with, and a model to begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from elpo.training.run_folder import RunFolder
from elpo.training.trainer import Result, train
from tests.coins import coins_config


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Result]:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    result = train(coins_config(folder))
    return RunFolder(folder), result


@pytest.fixture(scope="session")
def cold_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen a few demonstrations: right about half of the time."""
    folder = tmp_path_factory.mktemp("cold") / "run"
    train(coins_config(folder, "rl.num_steps=0", "task.options.gold_share=0.7"))
    return next(folder.glob("checkpoints/*/model"))
