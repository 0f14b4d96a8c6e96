"""The benchmark for GPUs, tried as a whole on a CPU, and its count of operations against torch's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu  # of the folder benchmarks
import gpu_parts
import gpu_training
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from elpo.algorithms.credit import assign_credit
from elpo.config import AlgorithmConfig, RLConfig
from elpo.training.learner import Learner
from elpo.training.policy_update import packed, unrolled, update_policy
from tests.training.small import random_tree, small_learner, small_model

SMALL = "--device cpu --sizes tiny --trees 1 --steps 2 --words 3 --repeats 1 --microbatch-tokens 500"


def run(arguments: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, object]]]:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments.split(), "--out", str(out)])
    gpu.main()
    found: dict[str, list[dict[str, object]]] = json.loads((out / "gpu.json").read_text())
    return found


@pytest.mark.slow
def test_every_part_is_measured_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(f"{SMALL} --slots 4 --prompt 9 --tokens 3", tmp_path, monkeypatch)
    updates = {(row["mode"], row["way"]): row for row in found["training"] if row["way"] != "model"}
    assert len(updates) == 8
    for (mode, way), row in updates.items():
        if way == "FlexAttention":
            assert row["failed"] == "NotImplementedError: FlexAttention has no backward pass on a CPU"
        else:
            assert row["gradient_difference"] < (1e-5 if mode == "all weights" else 0.05)  # type: ignore[operator]
            assert row["unique_tokens_per_second"] > 0  # type: ignore[operator]
    sampled = {(row["mode"], row["engine"]): row for row in found["rollouts"]}
    for mode in ("all weights", "adapters"):
        assert sampled[mode, "transformers"]["tokens_per_second"] > 0  # type: ignore[operator]
    assert "| tiny | adapters | dense mask |" in (tmp_path / "gpu.md").read_text()


def test_out_of_time_is_a_row_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(f"{SMALL} --minutes 0", tmp_path, monkeypatch)
    assert [row["failed"] for row in found["training"]] == ["TimeoutError: no time was left (--minutes)"] * 2


def test_without_a_gpu_it_says_how_to_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="--device cpu --sizes tiny"):
        gpu.main()


def test_rates_are_found_by_the_devices_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"NVIDIA H200": "h200", "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA GeForce RTX 4090": "rtx4090"}
    for name, key in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert gpu_parts.published_rates(torch.device("cuda")) is gpu_parts.DEVICES[key]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some Card")
    assert gpu_parts.published_rates(torch.device("cuda")) is None


def test_models_have_as_many_weights_as_the_published_ones() -> None:
    published = {"0.1B": 134_515_008, "0.5B": 494_032_768, "1B": 1_235_814_400}
    for size, num_weights in published.items():
        model = gpu_parts.build_model(size, "all weights", torch.device("meta"))
        assert sum(p.numel() for p in model.parameters()) == num_weights


@pytest.mark.parametrize("way", ["rows", "runs"])
def test_operations_are_those_torch_counts(way: str) -> None:
    """But for attention, of which torch counts what its kernels recompute."""
    model = small_model()
    trees = [random_tree(seed, model, off_policy=0.6) for seed in range(3)]
    credits = [assign_credit(tree) for tree in trees]
    algorithm = AlgorithmConfig()
    learner: Learner = small_learner(model, "rows" if way == "rows" else "tree")
    rl = RLConfig(problems_per_step=3, problems_per_minibatch=3)
    with FlopCounterMode(display=False) as counter:
        update_policy(learner, trees, credits, algorithm, rl)
    counted = counter.get_flop_counts()["Global"]
    products = sum(counted.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    prepare = unrolled if way == "rows" else packed
    batch = prepare(trees, credits, algorithm.loss, rl.microbatch_tokens)
    config = model.config
    heads = config.num_attention_heads * config.head_dim
    attention = 12 * config.num_hidden_layers * heads * gpu_training.keys_seen(batch, way)
    found = gpu_training.training_flops(model, batch, way) - attention
    assert found == pytest.approx(products, rel=1e-6)
