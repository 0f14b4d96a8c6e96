"""Of gpu.py: one update of the policy in several ways, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from gpu_parts import Clock

from elpo.algorithms.credit import assign_credit
from elpo.config import AlgorithmConfig, OptimizerConfig, RLConfig
from elpo.packing import Minibatch, TreeLayout
from elpo.training.plan import Device
from elpo.tree import RolloutTree

WAYS = ("rows", "FlexAttention", "runs", "dense mask")


def dense_hidden_states(base_model: Any, token_ids: torch.Tensor, layout: TreeLayout) -> torch.Tensor:
    """As `elpo.training.tree_attention.hidden_states`, under an N x N mask."""
    index = torch.arange(len(token_ids), device=token_ids.device)
    sees = (index[None] <= index[:, None]) & (index[:, None] < layout.subtree_end[None])
    output = base_model(
        input_ids=token_ids[None],
        position_ids=layout.positions[None],
        attention_mask=sees[None, None],
        use_cache=False,
    )
    hidden: torch.Tensor = output.last_hidden_state[0]
    return hidden


@contextmanager
def in_way(way: str, device: torch.device) -> Iterator[None]:
    """While this lasts updates are made in the way; FlexAttention is not even tried in the others."""
    from elpo.training import learner, tree_attention

    if way == "FlexAttention" and device.type != "cuda":
        raise NotImplementedError("FlexAttention has no backward pass on a CPU")
    smallest = tree_attention.MIN_FLEX_HEAD if way == "FlexAttention" else 1 << 30
    forward = dense_hidden_states if way == "dense mask" else tree_attention.hidden_states
    with (
        mock.patch.object(tree_attention, "MIN_FLEX_HEAD", smallest),
        mock.patch.object(learner, "hidden_states", forward),
    ):
        yield


def training_flops(model: Any, batch: Minibatch, way: str) -> float:
    """Of the matrix products of one update: what the way does with the tokens of `batch`.

    In the way "unique" the second forward pass of the vocabulary, which saves memory, is left out.
    """
    from elpo.training.learner import MAX_LOGITS

    config, head = model.config, model.get_output_embeddings().weight
    layers = [p for name, p in model.base_model.named_parameters() if "embed" not in name and p.ndim == 2]
    trained = sum(p.numel() for p in layers if p.requires_grad)
    frozen = sum(p.numel() for p in layers) - trained
    scored = 0.0
    for part in batch.parts:
        sampled = float(part.sampled.sum())
        again = way != "unique" and sampled * len(head) > MAX_LOGITS
        scored += (4 + 2 * head.requires_grad + 2 * again) * sampled
    heads = config.num_attention_heads * head_size(config)
    attention = 12 * config.num_hidden_layers * heads * keys_seen(batch, way)
    return float((4 * frozen + 6 * trained) * batch.num_forwarded + scored * head.numel() + attention)


def head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def keys_seen(batch: Minibatch, way: str) -> float:
    """By all tokens of all parts together."""
    seen = 0.0
    for part in batch.parts:
        if part.layout is None:
            num, length = part.token_ids.shape
            seen += num * length * (length + 1) / 2
        elif way == "dense mask":
            seen += len(part.token_ids) ** 2
        else:
            seen += float((part.layout.positions + 1).sum())
    return seen


class Training:
    """One model's updates on the same trees, way by way."""

    def __init__(self, model: Any, mode: str, trees: Sequence[RolloutTree], tokens: int) -> None:
        self.model, self.mode, self.trees = model.train(), mode, trees
        self.credits = [assign_credit(tree) for tree in trees]
        self.rl = RLConfig(
            problems_per_step=len(trees), problems_per_minibatch=len(trees), microbatch_tokens=tokens
        )
        self._reference: tuple[float, list[torch.Tensor]] | None = None

    def measure(
        self, way: str, clock: Clock, device: torch.device, rates: Device | None, repeats: int
    ) -> dict[str, Any]:
        """One row of the table."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        from elpo.training.learner import Learner
        from elpo.training.policy_update import packed, unrolled, update_policy

        clock.require_time()
        AcceleratorState._reset_state(True)
        torch._dynamo.reset()
        precision = "bf16" if self.mode == "all weights" and device.type == "cuda" else "no"
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
        optimizer = OptimizerConfig(learning_rate=1e-30)  # every repetition sees the same weights
        algorithm = AlgorithmConfig()
        with in_way(way, device):
            learner = Learner.prepare(
                accelerator, self.model, optimizer, 100, packing="rows" if way == "rows" else "tree"
            )

            def update() -> dict[str, float]:
                return update_policy(learner, self.trees, self.credits, algorithm, self.rl)

            first, metrics = clock.seconds(update)
            clock.start_peak()
            seconds = min(clock.seconds(update)[0] for _ in range(repeats))
            peak = clock.peak_gb()
        sized = self.trees, self.credits, algorithm.loss, self.rl.microbatch_tokens
        unique = packed(*sized[:3], max_tokens=1 << 40)
        of_way = (unrolled if way == "rows" else packed)(*sized)
        useful = training_flops(self.model, unique, "unique")
        performed = training_flops(self.model, of_way, way)
        available = rates and rates.flops * seconds
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return {
            "seconds": seconds,
            "compile_seconds": first - seconds,
            "unique_tokens": unique.num_unique,
            "forwarded_tokens": of_way.num_forwarded,
            "unique_tokens_per_second": unique.num_unique / seconds,
            "model_flops": useful,
            "utilisation": available and useful / available,
            "work": available and performed / available,
            "peak_gb": peak,
            **self._difference(metrics["loss"], gradients),
        }

    def _difference(self, loss: float, gradients: list[torch.Tensor]) -> dict[str, float]:
        if self._reference is None:
            self._reference = loss, [gradient.cpu() for gradient in gradients]
        theirs, others = self._reference
        apart = whole = 0.0
        for mine, other in zip(gradients, others, strict=True):
            there = other.to(mine.device)
            apart += float((mine.float() - there.float()).square().sum(dtype=torch.float64))
            whole += float(there.float().square().sum(dtype=torch.float64))
        return {
            "loss": loss,
            "loss_difference": abs(loss - theirs) / max(abs(theirs), 1e-30),
            "gradient_difference": math.sqrt(apart / max(whole, 1e-300)),
        }
