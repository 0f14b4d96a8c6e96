"""Nothing is mixed up between a CPU and a GPU: updates and sampling on a CUDA device that is pretended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import Qwen2Config, Qwen2ForCausalLM

from elpo.algorithms.credit_rules import assign_credits
from elpo.config import AlgorithmConfig, LossConfig, RLConfig
from elpo.engines.transformers import TransformersEngine
from elpo.interfaces import TurnRequest
from elpo.training import tree_attention
from elpo.training.learner import Learner
from elpo.training.policy_update import update_policy
from elpo.training.reference import Reference
from elpo.training.sft import Conversation, sft_update
from tests.pretended_cuda import CUDA, MixedDevicesError, PretendedCuda, is_there, put
from tests.training.small import VOCAB, random_tree, small_learner, small_model

TREES = [random_tree(seed, small_model(), off_policy=0.6) for seed in range(3)]


def model_for_flex() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCAB, num_key_value_heads=1, **sizes))


def flex_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, block_mask: Any, scale: float, **_: Any
) -> torch.Tensor:
    """As torch's, of all N x N scores."""
    assert all(is_there(x) for x in (query, key, value, block_mask.kv_indices))
    index = torch.arange(query.shape[2], device=query.device)
    sees = block_mask.mask_mod(index.new_zeros(()), index.new_zeros(()), index[:, None], index[None])
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~sees, float("-inf"))
    return scores.softmax(-1) @ value


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Accelerator, "device", CUDA)
    monkeypatch.setattr(tree_attention, "_compiled", lambda: flex_attention)
    with PretendedCuda():
        yield


def gradient(learner: Learner) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in learner.scorer.parameters() if p.grad is not None])


def trained(learner: Learner, loss: LossConfig) -> tuple[dict[str, float], torch.Tensor]:
    """A cold start's update and two of RL, with all that RL can be asked for."""
    conversations = [Conversation(np.arange(length) % VOCAB, np.arange(length) % 3 > 0) for length in (5, 9)]
    sft_update(learner, conversations, 10)
    algorithm = AlgorithmConfig(loss=loss)
    rl = RLConfig(problems_per_step=3, problems_per_minibatch=3, microbatch_tokens=60, num_epochs=2)
    credits = assign_credits(TREES, algorithm)
    reference = Reference(learner) if loss.kl_weight else None
    metrics = update_policy(learner, TREES, credits, algorithm, rl, recompute=True, reference=reference)
    return metrics, gradient(learner).detach()


LOSSES = {"ppo": LossConfig(kl_weight=0.1), "gspo": LossConfig(surrogate="gspo")}


@pytest.mark.parametrize("packing", ["tree", "rows"])
@pytest.mark.parametrize(
    "loss", [LossConfig(kl_weight=0.1), LossConfig(surrogate="gspo")], ids=["ppo", "gspo"]
)
@pytest.mark.parametrize("make", [small_model, model_for_flex], ids=["runs", "blocks"])
def test_updates_keep_to_their_device(packing: Any, loss: LossConfig, make: Any, on_cuda: None) -> None:
    metrics, found = trained(small_learner(put(make()), packing), loss)
    assert is_there(found)
    assert metrics["updates"] == 2 and float(found.norm()) > 0


def test_sampling_keeps_to_its_device(on_cuda: None) -> None:
    model: Any = put(model_for_flex().eval())
    engine = TransformersEngine(model, (0,), num_slots=3)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, VOCAB, length) for length in (5, 300)]
    for i in range(6):
        engine.submit(TurnRequest(i, i % 2, prompts[i % 2], 5, seed=i, temperature=i / 5, num_top=2))
    done = 0
    while done < 6:
        for turn in engine.step():
            engine.release(turn.rollout)
            done += 1
    assert is_there(engine._cache.layers[0].keys)
    assert engine.counts.reused_tokens > 0


def test_what_is_pretended_does_not_mix() -> None:
    with PretendedCuda():
        there, here = torch.zeros(3, device="cuda"), torch.ones(3)
        assert (there + 1).device == there.new_ones(2).device == here.to("cuda").device == CUDA
        assert here.device.type == there.cpu().device.type == "cpu"
        for mix in (lambda: there + here, lambda: torch.cat([here, there]), lambda: there.numpy()):
            with pytest.raises(MixedDevicesError):
                mix()
