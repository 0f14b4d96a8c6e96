"""Whole runs on CUDA: the tiny recipe from its command line, and a run that was stopped."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from elpo.cli import main
from elpo.training.checkpoint import Checkpoints
from elpo.training.run_folder import RunFolder
from elpo.training.trainer import Interrupted, train
from tests.coins import coins_config
from tests.training.killed_run import Until

pytestmark = pytest.mark.gpu

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
SHORT = [
    "sft.num_steps=20",
    "sft.num_demonstrations=200",
    "rl.num_steps=2",
    "rl.problems_per_step=4",
    "rl.problems_per_minibatch=2",
    "algorithm.num_rollouts=8",
    "evaluation.every=0",
    "evaluation.num_problems=4",
    "run.tensorboard=false",
    "run.checkpoint_every=1",
]


def test_the_tiny_recipe_trains(device: torch.device, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    settings = [*SHORT, f"run.device={device.type}", f"run.dir={str(run.path)!r}"]
    assert main(["train", str(RECIPE), *settings]) == 0
    steps = run.read_metrics("rl")
    assert [line["step"] for line in steps] == [1, 2]
    assert all(math.isfinite(line["loss"]) for line in steps)
    assert all(line.get("logprob/sampler_difference", 0.0) < 1e-3 for line in steps)
    assert main(["train", str(RECIPE), *settings, "--resume"]) == 0  # nothing is left to do


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "adapters"])
def test_a_stopped_run_continues(kind: str, device: torch.device, tmp_path: Path) -> None:
    """Two runs agree on a GPU but for rounding, which is not the same in every pass there."""
    overrides = [f"run.device={device.type}", "algorithm.loss.kl_weight=0.01", "rl.num_steps=3"]
    if kind != "float32":
        overrides += ["model.dtype=bfloat16"]
    if kind == "adapters":
        pytest.importorskip("peft")
        overrides += ["model.lora.rank=4"]
    straight, stopped = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "stopped")
    train(coins_config(straight.path, *overrides))
    AcceleratorState._reset_state(True)
    stop = Until("rl", 1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        train(coins_config(stopped.path, *overrides), progress=stop)
    AcceleratorState._reset_state(True)
    train(coins_config(stopped.path, *overrides), resume=True)
    for phase in ("sft", "rl"):
        mine, theirs = stopped.read_metrics(phase), straight.read_metrics(phase)  # type: ignore[arg-type]
        assert [line["step"] for line in mine] == [line["step"] for line in theirs]
        assert all(math.isfinite(line["loss"]) for line in mine)
    a, b = (weights(run) for run in (straight, stopped))
    assert a.keys() == b.keys()
    apart = math.sqrt(sum(float((a[name] - b[name]).float().square().sum()) for name in a))
    whole = math.sqrt(sum(float(value.float().square().sum()) for value in a.values()))
    print(f"{kind}: weights of both runs differ by {apart / whole:.1e}")
    assert apart / whole < 0.1


def weights(run: RunFolder) -> dict[str, Any]:
    path = Checkpoints(run.checkpoints).path("last")
    assert path is not None
    (file,) = (path / "model").glob("*.safetensors")
    return load_file(file)
