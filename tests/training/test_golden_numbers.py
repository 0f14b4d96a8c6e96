"""Numbers of a whole run, as they were when they were last meant to change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elpo.training.run_folder import RunFolder
from elpo.training.trainer import Result, train
from tests.coins import coins_config

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden_run.json"

COUNTS = {
    "success/heldout", "success/train", "rollouts/total", "tokens/sampled", "tokens/feedback", "tool/calls",
    "updates", "localization/searches", "engine/decode_steps", "engine/fed_tokens", "engine/reused_tokens",
}  # fmt: skip
FLOATS = {"loss", "entropy/mean", "grad/norm", "kl/approx", "clip/low_share", "clip/high_share", "lr"}


def regenerate_golden_numbers(folder: Path) -> None:
    """PYTHONPATH=src:. python -c "from tests.training.test_golden_numbers import *;
    regenerate_golden_numbers(Path('/tmp/golden'))", after a change that is meant to change them.
    """
    train(coins_config(folder))
    kept = {("sft", 1), *(("sft", step) for step in range(10, 70, 10)), ("evaluation", 0), ("rl", 1)}
    lines = [
        {name: value for name, value in line.items() if name in COUNTS | FLOATS | {"phase", "step"}}
        for line in RunFolder(folder).read_metrics()
        if (line["phase"], line["step"]) in kept
    ]
    how = " ".join((regenerate_golden_numbers.__doc__ or "").split())
    GOLDEN.write_text(json.dumps({"regenerate": how, "lines": lines}, indent=1) + "\n")


def test_golden_numbers(straight: tuple[RunFolder, Result]) -> None:
    """Floats to 1e-4, which is more than instruction sets differ by; counts exactly."""
    lines = {(line["phase"], line["step"]): line for line in straight[0].read_metrics()}
    for expected in json.loads(GOLDEN.read_text())["lines"]:
        got = lines[expected["phase"], expected["step"]]
        for name, value in expected.items():
            where = (expected["phase"], expected["step"], name)
            if name in COUNTS:
                assert got[name] == value, where
            elif name not in ("phase", "step"):
                assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-7), where
