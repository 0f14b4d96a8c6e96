"""Estimates against what models, optimizers, caches and autograd really take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from elpo.cli import main
from elpo.config import Config
from elpo.engines.slots import SlotCache
from elpo.recipes import load_config
from elpo.training.learner import SampledLogProbs
from elpo.training.model_loading import load_model
from elpo.training.plan import DEVICES, Plan, _capacity, activation_bytes, plan
from tests.models.families import FAMILIES, model_of, save_family, tokenizer_of


def estimate(folder: Path, *overrides: str) -> tuple[Config, Plan]:
    config = load_config(None, [f"model.path={folder}", *overrides])
    return config, plan(config, DEVICES["a100"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [0, 8])
def test_weights_and_optimizer_are_exact(family: str, rank: int, tmp_path: Path) -> None:
    config, found = estimate(save_family(family, tmp_path / "m"), f"model.lora.rank={rank}")
    model = load_model(config.model, config.model.path, tokenizer_of(family), seed=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert found.num_weights == sum(p.numel() for p in model.parameters())
    assert found.num_trained == sum(p.numel() for p in trained)
    optimizer = torch.optim.AdamW(trained)
    sum(p.sum() for p in trained).backward()
    optimizer.step()
    states = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    assert found.bytes_at_rest["optimizer (AdamW)"] == sum(v.nbytes for v in states)
    assert found.bytes_at_rest["their gradients"] == sum(p.grad.nbytes for p in trained)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_about_what_autograd_keeps(family: str, checkpointing: bool) -> None:
    tokens, sizes = 256, {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6}
    model = model_of(family, **sizes)
    config = load_config(
        None, [f"rl.microbatch_tokens={tokens}", f"model.gradient_checkpointing={str(checkpointing).lower()}"]
    )
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, Any]] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), value)  # alive, so that no address comes twice
        return value

    ids = torch.arange(tokens)[None] % 250
    sampled = torch.arange(tokens)[None] == tokens - 1  # one logit: those are counted apart
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        SampledLogProbs(model)(ids, sampled)[0].sum()
    really = sum(size for size, _ in kept.values())
    if checkpointing:  # one layer as a whole comes back in the backward pass
        config_of_one = load_config(None, [f"rl.microbatch_tokens={tokens}"])
        one = model_of(family, **sizes | {"num_hidden_layers": 1}).config
        really += int(activation_bytes(one, config_of_one, 4))
    assert 0.6 < activation_bytes(model.config, config, 4) / really < 1.5


@pytest.mark.parametrize("length", [1, 256, 257, 1000, 20480])
def test_the_cache_grows_as_estimated(length: int) -> None:
    cache = SlotCache(1, 1)
    for position in sorted({1, length // 3, length // 2, length} - {0}):
        cache._reserve(position)
    assert cache.capacity <= _capacity(length) <= max(256, 2 * length)


def test_what_does_not_fit_is_said_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_family("qwen3", tmp_path / "m")
    assert main(["plan", f"model.path={folder}", "--device", "rtx4090", "rollout.prefix_cache_mb=40000"]) == 0
    out = capsys.readouterr().out
    assert "does NOT fit into 24 GB" in out and "smaller rollout.prefix_cache_mb" in out
    assert "prefix_cache_mb: 40000" in out  # among all settings
    assert main(["plan", "--device", "a10"]) == 2
    assert "did you mean 'a100'" in capsys.readouterr().err
