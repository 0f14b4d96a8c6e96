"""FlexAttention's kernels over trees, and updates through them, against runs and unrolled rows."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from elpo.algorithms.credit_rules import assign_credits
from elpo.config import AlgorithmConfig, LoraConfig, OptimizerConfig, RLConfig
from elpo.models.lora import add_lora
from elpo.packing import TreeLayout, tree_layout
from elpo.training import tree_attention
from elpo.training.learner import Learner
from elpo.training.model_loading import cast_weights
from elpo.training.policy_update import update_policy
from elpo.training.tree_attention import block_attention, run_attention
from tests.training.small import VOCAB, random_tree, record_gradients, small_model

pytestmark = pytest.mark.gpu

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS: dict[str, Any] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "qwen2, tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "heads too small for the kernels": small_model,
}
TREES = [random_tree(seed, small_model(), off_policy=0.6) for seed in range(8)]


def layout_of(length: int) -> TreeLayout:
    """A trunk, branches that end at once, and one that branches again."""
    parts = [3, 2, 1, 1, 2, 1]
    return tree_layout([-1, 0, 1, 1, 0, -1], [length * part // sum(parts) + 1 for part in parts])


@pytest.mark.parametrize(
    ("heads", "of_keys", "size", "dtype"),
    [
        (32, 8, 64, torch.float32),  # Llama-3.2-1B
        (14, 2, 64, torch.bfloat16),  # Qwen2.5-0.5B
        (16, 8, 128, torch.bfloat16),  # Qwen3-0.6B
        (2, 1, 48, torch.float32),  # the tiny recipe
    ],
    ids=str,
)
def test_kernels_attend_as_the_runs_do(
    heads: int, of_keys: int, size: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Rows shorter than a block, of whole blocks, and of neither."""
    if device.type == "cpu":
        pytest.skip("FlexAttention has no backward pass on a CPU")
    limit = 1e-5 if dtype == torch.float32 else 3e-2
    torch.manual_seed(0)
    for length in (30, 506, 1530, 3001):
        layout = layout_of(length).to(device)
        num = len(layout.positions)
        parts = [
            torch.randn(1, num, n, size, device=device, dtype=dtype).transpose(1, 2).requires_grad_()
            for n in (heads, of_keys, of_keys)
        ]
        direction = torch.randn(1, num, heads, size, device=device, dtype=dtype)
        found = []
        for attend in (block_attention, run_attention):
            started = time.perf_counter()
            output = attend(*parts, layout)
            found.append([output.detach(), *torch.autograd.grad(output, parts, direction)])
            print(f"{attend.__name__} {num} tokens, {heads} heads: {time.perf_counter() - started:.2f} s")
        for mine, theirs in zip(*found, strict=True):
            assert float((mine.float() - theirs.float()).norm() / theirs.float().norm()) < limit


def updates(model: Any, packing: Any, device: torch.device, bfloat16: bool) -> tuple[Any, torch.Tensor]:
    """Metrics and gradient of one update with ELC."""
    model.set_attn_implementation("sdpa")
    precision = "bf16" if bfloat16 else "no"
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    config = OptimizerConfig(learning_rate=1e-30, max_grad_norm=1e9)
    learner = Learner.prepare(accelerator, model.to(device).train(), config, 10, packing=packing)
    assert learner.device.type == device.type and learner.obstacle is None
    gradients = record_gradients(learner)
    algorithm = AlgorithmConfig()
    rl = RLConfig(problems_per_step=len(TREES), problems_per_minibatch=len(TREES), microbatch_tokens=150)
    credits = assign_credits(TREES, algorithm)
    metrics = update_policy(learner, TREES, credits, algorithm, rl)
    return metrics, torch.cat([gradient.flatten() for gradient in gradients[0].values()])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapters"])
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_an_update_on_packed_trees_is_that_of_unrolled_rows(
    name: str, lora: bool, bfloat16: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    if lora:
        pytest.importorskip("peft")
        if bfloat16:
            cast_weights(model, torch.bfloat16)
        add_lora(model, LoraConfig(rank=4), seed=0)
        for parameter in model.parameters():  # B starts at zero, and A's gradient with it
            if parameter.requires_grad:
                parameter.data.normal_(std=0.1)
    kernels = []
    attend = tree_attention.block_attention
    monkeypatch.setattr(
        tree_attention, "block_attention", lambda *parts: kernels.append(parts[0].dtype) or attend(*parts)
    )
    autocast = bfloat16 and not lora
    expected, theirs = updates(model, "rows", device, autocast)
    assert not kernels
    metrics, mine = updates(model, "tree", device, autocast)
    flex = device.type == "cuda" and name in list(MODELS)[:3]
    assert bool(kernels) == flex
    if flex:
        assert kernels[-1] == (torch.bfloat16 if bfloat16 else torch.float32)
    assert mine.device.type == device.type and float(theirs.norm()) > 0
    assert min(expected["clip/elc_share"], metrics["clip/elc_share"]) > 0
    difference = float((mine - theirs).norm() / theirs.norm())
    print(f"{name}: gradients differ by {difference:.1e}, loss {metrics['loss']} {expected['loss']}")
    assert difference < (0.1 if bfloat16 else 1e-5)
    assert metrics["loss"] == pytest.approx(expected["loss"], abs=2e-2 if bfloat16 else 1e-5)
    assert metrics["tokens/forwarded_per_unique"] < expected["tokens/forwarded_per_unique"]


def test_the_gradient_is_that_of_a_cpu(device: torch.device) -> None:
    found = []
    for where in (torch.device("cpu"), device):
        AcceleratorState._reset_state(True)
        torch.manual_seed(0)
        found.append(updates(MODELS["qwen3"](), "tree", where, False)[1].cpu())
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-4
