"""Sampling on CUDA: a CPU's log-probabilities, and the same trees for the same seeds."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from elpo.algorithms.strategies import bel
from elpo.engines.transformers import TransformersEngine
from elpo.interfaces import Turn, TurnRequest
from elpo.training.assembly import assemble
from elpo.training.checkpoint import Checkpoints
from elpo.training.run_folder import RunFolder
from elpo.training.trainer import train
from elpo.tree import RolloutTree
from tests.coins import coins_config

pytestmark = pytest.mark.gpu

VOCAB = 300
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS: dict[str, Any] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
}


def sampled(
    model: Any, device: torch.device, autocast: torch.dtype | None = None, num_top: int = 0
) -> dict[int, Turn]:
    """Turns of 12 rollouts of three prompts, of different lengths, in 8 slots."""
    model = model.to(device).eval()
    engine = TransformersEngine(model, (0,), num_slots=8, autocast=autocast)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, VOCAB, length) for length in (5, 40, 300)]
    for i in range(12):
        engine.submit(TurnRequest(i, i % 3, prompts[i % 3], 20 + i, seed=i, num_top=num_top))
    turns = {}
    while len(turns) < 12:
        for turn in engine.step():
            turns[turn.rollout] = turn
            engine.release(turn.rollout)
    assert engine.counts.reused_tokens > 0
    return turns


@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_log_probabilities_are_those_of_a_cpu(name: str, device: torch.device) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():  # a random model is nearly uniform; make its choices differ
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    expected = sampled(model, torch.device("cpu"), num_top=5)
    found = sampled(model, device, num_top=5)
    for rollout, turn in expected.items():
        assert np.array_equal(found[rollout].token_ids, turn.token_ids)
        np.testing.assert_allclose(found[rollout].logprobs, turn.logprobs, atol=1e-3)
        np.testing.assert_allclose(found[rollout].entropies, turn.entropies, atol=1e-3)
        np.testing.assert_allclose(found[rollout].top_logprobs, turn.top_logprobs, atol=1e-3)


@pytest.mark.parametrize("trained", ["all weights", "adapters"])
def test_in_bfloat16_log_probabilities_are_those_of_a_plain_pass(trained: str, device: torch.device) -> None:
    """Of the very tokens that were sampled, in the same precision."""
    torch.manual_seed(0)
    model = MODELS["qwen3"]().to(device).eval()
    autocast = torch.bfloat16 if trained == "all weights" else None
    if autocast is None:
        model.to(torch.bfloat16)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, VOCAB, length) for length in (5, 40, 300)]
    for rollout, turn in sampled(model, device, autocast).items():
        prompt = prompts[rollout % 3]
        ids = torch.from_numpy(np.concatenate([prompt, turn.token_ids])).to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast is not None):
            logits = model(ids[None]).logits[0, len(prompt) - 1 : -1].float()
        plain = torch.log_softmax(logits, -1).gather(-1, ids[len(prompt) :, None])[:, 0]
        difference = np.abs(plain.cpu().numpy() - turn.logprobs)
        assert difference.mean() < 0.02 and difference.max() < 0.2


def grown(config: Any, device: torch.device, weights: Path) -> list[RolloutTree]:
    with closing(assemble(config, device, weights)) as assembly:
        assembly.model.eval()
        problems = assembly.task.problems("train", 6)
        trees, _ = assembly.scheduler.grow(problems, bel(), 12, seed=0)
        return trees


def test_the_same_seeds_grow_the_same_trees(device: torch.device, tmp_path: Path) -> None:
    """From a policy with a cold start on a CPU, with the real tool."""
    config = coins_config(tmp_path / "run", "rl.num_steps=0", "rollout.deterministic=true")
    train(config)
    path = Checkpoints(RunFolder(tmp_path / "run").checkpoints).path("last")
    assert path is not None
    expected, found = (grown(config, where, path / "model") for where in (torch.device("cpu"), device))
    assert sum(len(tree.localizations) for tree in expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.outcomes == theirs.outcomes and mine.localizations == theirs.localizations
        assert [node.parent for node in mine.nodes] == [node.parent for node in theirs.nodes]
        for a, b in zip(mine.nodes, theirs.nodes, strict=True):
            assert np.array_equal(a.step.token_ids, b.step.token_ids)
            np.testing.assert_allclose(a.step.logprobs, b.step.logprobs, atol=1e-3)
