"""AEPO's objective: uncertain tokens count for more, and above the upper clip a gradient remains."""

from __future__ import annotations

import torch
from torch import Tensor

from elpo.algorithms.surrogate import dual_clipped, log_ratio


def balanced_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: Tensor,
    clip_high: Tensor,
    entropies: Tensor,
    entropy_bonus: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped objective with entropy-aware advantages, whose upper clip keeps a gradient. [M]

        A' = A (1 + a z),   z = (H − μ_H) / σ_H over the M tokens
        J  = min(ρ A', clip(ρ, low, high) A'),   above `high`: (high / sg[ρ]) ρ in place of `high`

    Where A' > 0 and ρ > high the value is PPO's, high · A', and the gradient is high · A' ∇ log π_θ instead
    of nothing. Where A' < 0 and ρ < low there is none, as in PPO. Equal entropies change no advantage.

    Source: AEPO (arXiv 2510.14545) and its code: a = 0.2, z over the sampled tokens of the micro-batch with
    the sample deviation, entropies of the policy being trained without gradient; a dual clip as in verl.

    Args:
        logprobs, old_logprobs, advantages, clip_low, clip_high, entropies: of M sampled tokens.
        entropy_bonus: a.
        dual_clip: as in `elpo.algorithms.surrogate.clipped_surrogate`.
    """
    ratio = log_ratio(logprobs, old_logprobs).exp()
    advantages = advantages * (1 + entropy_bonus * _standardized(entropies.detach()))
    carried = clip_high / ratio.detach() * ratio
    clipped = torch.where(ratio > clip_high, carried, torch.maximum(ratio, clip_low))
    return dual_clipped(torch.minimum(ratio * advantages, clipped * advantages), advantages, dual_clip)


def _standardized(values: Tensor) -> Tensor:
    if values.numel() < 2:
        return torch.zeros_like(values)
    deviation = values.std()
    return torch.where(deviation > 0, (values - values.mean()) / (deviation + 1e-8), torch.zeros_like(values))
