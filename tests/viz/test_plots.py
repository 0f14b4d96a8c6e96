"""Learning curves: the numbers behind the lines, and that a picture comes out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from elpo.training.run_folder import RunFolder, RunFolderError
from elpo.viz.plots import learning_curves, rollouts_at, series, single_panels


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "elpo-run")
    folder.append_metrics("sft", 1, {"loss": 1.0})
    folder.append_metrics("evaluation", 0, {"success/heldout": 0.1})
    for step, rollouts in ((1, 10), (2, 30), (3, 0)):
        folder.append_metrics(
            "rl",
            step,
            {
                "rollouts/total": rollouts,
                "tokens/sampled": 60.0,
                "success/train": 0.2,
                "entropy/mean": math.nan,
            },
        )
    folder.append_metrics("evaluation", 2, {"success/heldout": 0.4})
    return folder


def test_series_of_one_phase(run: RunFolder) -> None:
    steps, values = series(run.read_metrics(), "evaluation", "success/heldout")
    np.testing.assert_array_equal(steps, [0, 2])
    np.testing.assert_array_equal(values, [0.1, 0.4])


def test_series_per_rollout_leaves_out_steps_without_any(run: RunFolder) -> None:
    steps, values = series(run.read_metrics(), "rl", "tokens/sampled", "rollouts/total")
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal(values, [6.0, 2.0])


def test_rollouts_add_up_over_steps(run: RunFolder) -> None:
    np.testing.assert_array_equal(rollouts_at(run.read_metrics(), np.array([0, 1, 2, 3])), [0, 10, 40, 40])


def test_a_picture_of_several_runs(run: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "only-sft")
    other.append_metrics("sft", 1, {"loss": 1.0})
    out = learning_curves([run.path, other.path], tmp_path / "new" / "curves.png")
    data = out.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 20_000


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no metrics in"):
        learning_curves([tmp_path], tmp_path / "x.png")


def test_each_panel_by_itself(run: RunFolder, tmp_path: Path) -> None:
    files = single_panels([run.path], tmp_path / "panels")
    names = {file.stem for file in files}
    assert "success-rate" in names and "tokens-per-rollout" in names
    assert "error-localization" not in names  # nothing recorded, nothing drawn
    assert {file.suffix for file in files} == {".png", ".svg"}
    assert all(file.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml") for file in files)


def test_the_suffix_chooses_the_format(run: RunFolder, tmp_path: Path) -> None:
    assert learning_curves([run.path], tmp_path / "c.svg").read_text().startswith("<?xml")
    with pytest.raises(ValueError, match=r"ends in \.png"):
        learning_curves([run.path], tmp_path / "c.bmp")
