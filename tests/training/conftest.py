"""The run that others are compared with."""

from __future__ import annotations

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
