"""What a model is trained with: chunked log-probabilities, adapters, bfloat16, gradient checkpointing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode

from elpo.cli import main
from elpo.config import LoraConfig, ModelConfig, OptimizerConfig
from elpo.engines.transformers import TransformersEngine
from elpo.interfaces import TurnRequest
from elpo.models.lora import add_lora, load_lora
from elpo.packing import tree_layout
from elpo.training import learner as learner_module
from elpo.training.learner import Learner, SampledLogProbs
from elpo.training.model_loading import autocast_dtype, load_model
from elpo.training.run_folder import RunFolder
from elpo.training.trainer import train
from tests.coins import coins_config
from tests.models.families import FAMILIES, model_of, save_family, tokenizer_of
from tests.training.small import assert_close, gradients_of, small_learner

VOCAB = 300
LAYOUT = tree_layout([-1, 0, 0], [30, 45, 45])
IDS = torch.arange(120) * 7 % VOCAB
SAMPLED = torch.arange(120) % 3 != 0


def score(model: Any, packed: bool) -> torch.Tensor:
    """A loss whose gradient sees every log-probability."""
    if packed:
        logprobs, _ = SampledLogProbs(model, 0.7)(IDS, SAMPLED, LAYOUT)
    else:
        logprobs, _ = SampledLogProbs(model, 0.7)(IDS[None], SAMPLED[None])
    return (logprobs.flatten() * torch.linspace(-1, 1, 120)).sum()


class Largest(TorchDispatchMode):
    """The most elements that any tensor made inside has."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else [found]:
            if isinstance(value, torch.Tensor):
                self.size = max(self.size, value.numel())
        return found


@pytest.mark.parametrize("packed", [True, False])
def test_chunks_change_neither_values_nor_gradients(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("qwen3", vocab_size=VOCAB)
    if packed:
        assert small_learner(model).packed
    with Largest() as whole:
        loss = score(model, packed)
        expected = gradients_of(model, loss)
    entropies = SampledLogProbs(model)(IDS[None], SAMPLED[None])[1]
    assert whole.size >= int(SAMPLED.sum()) * VOCAB  # all logits at once
    monkeypatch.setattr(learner_module, "MAX_LOGITS", 7 * VOCAB)
    with Largest() as chunked:
        in_chunks = score(model, packed)
        found = gradients_of(model, in_chunks)
    assert float(in_chunks.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_close(found, expected)
    torch.testing.assert_close(SampledLogProbs(model)(IDS[None], SAMPLED[None])[1], entropies)
    assert chunked.size <= max(parameter.numel() for parameter in model.parameters()) < whole.size / 2


@pytest.mark.parametrize("packed", [True, False])
def test_gradient_checkpointing_changes_no_gradient(packed: bool) -> None:
    model = model_of("qwen3", vocab_size=VOCAB)
    if packed:
        assert small_learner(model).packed
    model.train()
    expected = gradients_of(model, score(model, packed))
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert_close(gradients_of(model, score(model, packed)), expected)


# adapters


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_alone_are_trained_and_saved(family: str, tmp_path: Path) -> None:
    save_family(family, tmp_path / "base")
    config = ModelConfig(path=str(tmp_path / "base"), dtype="bfloat16", lora=LoraConfig(rank=4))
    model = load_model(config, config.path, tokenizer_of(family), seed=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert all(p.dtype == torch.bfloat16 for name, p in model.named_parameters() if name not in trained)
    ids = IDS[None] % 256
    plain = load_model(ModelConfig(path=config.path), config.path, tokenizer_of(family), seed=0)
    with torch.no_grad():  # fresh ones do nothing
        torch.testing.assert_close(model(ids).logits.float(), plain(ids).logits, rtol=0.05, atol=0.1)
    learner = small_learner(model)
    assert learner.packed, learner.obstacle
    for _ in range(3):
        learner.update([-learner.scorer(ids[0], SAMPLED, LAYOUT)[0].sum()])
    with torch.no_grad():
        changed = model(ids).logits
        assert (changed.float() - plain(ids).logits).abs().max() > 0.2
    model.save_pretrained(tmp_path / "adapter")
    assert {file.name for file in (tmp_path / "adapter").glob("*.safetensors")} == {
        "adapter_model.safetensors"
    }
    again = load_model(config, config.path, tokenizer_of(family), seed=1, adapter=tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, changed, rtol=0, atol=0)
    for name, value in again.named_parameters():
        assert value.requires_grad == (name in trained)
    from peft import PeftModel  # others can read them

    theirs: Any = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, changed.float(), rtol=0.05, atol=0.1)


def test_adapters_of_another_shape_are_refused(tmp_path: Path) -> None:
    model = model_of("qwen3")
    add_lora(model, LoraConfig(rank=4), seed=0)
    model.save_pretrained(tmp_path / "adapter")
    other = model_of("qwen3")
    add_lora(other, LoraConfig(rank=8), seed=0)
    with pytest.raises(ValueError, match="another shape"):
        load_lora(other, tmp_path / "adapter")
    fewer = model_of("qwen3")
    add_lora(fewer, LoraConfig(rank=4, target_modules=("q_proj",)), seed=0)
    with pytest.raises(ValueError, match="other layers"):
        load_lora(fewer, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"model\.lora\.target_modules"):
        add_lora(model_of("qwen3"), LoraConfig(rank=4, target_modules=("nowhere",)), seed=0)


def test_quantized_weights_need_bitsandbytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    run = [f"run.dir={tmp_path / 'run'}", "task.name=tests.coins:Coins", "run.device=cpu"]
    assert main(["train", *run, "model.lora.quantized=true", "model.lora.rank=4"]) == 2
    assert "pip install bitsandbytes" in capsys.readouterr().err
    assert main(["train", *run, "model.lora.quantized=true"]) == 2
    assert "set rank" in capsys.readouterr().err


def test_a_run_with_adapters_continues_from_them(tmp_path: Path) -> None:
    settings = (
        "model.lora.rank=4", "model.dtype=bfloat16", "model.gradient_checkpointing=true", "sft.num_steps=4",
        "rl.problems_per_step=2", "evaluation.num_problems=2", "evaluation.every=0",
    )  # fmt: skip
    straight, resumed = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "resumed")
    train(coins_config(straight.path, *settings, "rl.num_steps=2"))
    train(coins_config(resumed.path, *settings, "rl.num_steps=1"))
    train(coins_config(resumed.path, *settings, "rl.num_steps=2"), resume=True)
    for run in (straight, resumed):
        assert (run.checkpoints / "rl-000002/model/adapter_model.safetensors").exists()
        assert not (run.checkpoints / "rl-000002/model/model.safetensors").exists()
    files = [run.checkpoints / "rl-000002/model/adapter_model.safetensors" for run in (straight, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()
    config = json.loads((resumed.checkpoints / "rl-000002/model/adapter_config.json").read_text())
    assert config["r"] == 4
    assert main(["eval", str(resumed.path), "evaluation.num_problems=2"]) == 0


# bfloat16


@pytest.mark.parametrize("rank", [0, 4])
def test_in_bfloat16_sampler_and_trainer_agree(rank: int) -> None:
    """All weights trained: float32 weights, computed in bfloat16 by both. Adapters: a bfloat16 model."""
    config = ModelConfig(dtype="bfloat16", lora=LoraConfig(rank=rank))
    model = model_of("qwen3")
    if rank:
        model = model.bfloat16()
        add_lora(model, config.lora, seed=0)
    autocast = autocast_dtype(config)
    assert (autocast is None) == bool(rank)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    prompt = IDS[:10].numpy() % 256
    engine = TransformersEngine(model, (257,), num_slots=1, autocast=autocast)
    engine.submit(TurnRequest(0, 0, prompt, 30, seed=3))
    turns: list[Any] = []
    while not turns:
        turns = engine.step()
    stored = {x.dtype for layer in engine._cache.layers for x in (layer.keys, layer.values)}
    assert stored == {torch.bfloat16}  # though autocast leaves rotated keys in float32
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if autocast else "no")
    try:
        learner = Learner.prepare(accelerator, model, OptimizerConfig(), num_updates=1)
        ids = torch.cat([torch.from_numpy(prompt), torch.from_numpy(turns[0].token_ids)])
        sampled = torch.arange(len(ids)) >= 10
        logprobs, _ = learner.scorer(ids[None], sampled[None])
        packed, _ = learner.scorer(ids, sampled, tree_layout([-1], [len(ids)]))
        difference = (logprobs[0, 10:].detach() - torch.from_numpy(turns[0].logprobs)).abs()
        exact = SampledLogProbs(model_of("qwen3"))(ids[None], sampled[None])[0][0, 10:]
        rounding = (logprobs[0, 10:] - exact).detach().abs().mean()
        assert difference.mean() <= max(0.02, float(rounding)) and float(rounding) > 1e-4
        torch.testing.assert_close(packed, logprobs[0], rtol=0.05, atol=0.05)
    finally:
        AcceleratorState._reset_state()
