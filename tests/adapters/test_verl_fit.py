"""verl's own trainer, with Ray, its data plane, FSDP2 and weight sync, on the plug-in."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="needs the extra elpo[verl] in an environment of its own")

import sys

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_fit(tmp_path: Path) -> None:
    """Two minutes on two idle cores: three steps of four trees, two updates each, weights sent after each."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "RAY_AUTH_MODE": "disabled",
        "VERL_USE_EXTERNAL_PLUGINS": "none",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.adapters.verl_fit", str(tmp_path), "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["data"] for line in lines if "actor/pg_loss" in line["data"]]
    assert len(steps) == 3
    for step in steps:
        assert step["elpo/rollouts/total"] == 6
        # prefixes, masks and log-probabilities line up, and the server has the trainer's weights
        assert step["training/rollout_probs_diff_mean"] < 1e-3
    assert any("val-core/coins/acc/mean@1" in line["data"] for line in lines)
