"""GSPO: the ratio of a whole sequence instead of each token's."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 10.0
"""verl's upper bound on a sequence's mean log-ratio."""


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, trajectory: Tensor) -> Tensor:
    """The mean log-ratio of the trajectory each token is of. Same shape.

        log s_i = 1/|o_i| Σ_t (log π_θ − log π_old)

    Args:
        logprobs, old_logprobs: of sampled tokens, nats, [M].
        trajectory: int64 [M], the number of the token's trajectory.
    """
    num = int(trajectory.max()) + 1 if len(trajectory) else 0
    zeros = logprobs.new_zeros(num)
    sums = zeros.index_add(0, trajectory, logprobs - old_logprobs)
    counts = zeros.index_add(0, trajectory, torch.ones_like(old_logprobs))
    return (sums / counts.clamp(min=1))[trajectory].clamp(max=MAX_LOG_RATIO)


def sequence_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: Tensor,
    clip_high: Tensor,
    trajectory: Tensor,
) -> Tensor:
    """PPO's clipped objective with the ratio of the sequence, for each token; to be maximised. [M]

        s_it = sg[s_i] · π_θ(o_it) / sg[π_θ(o_it)],   J = min(s_it A_it, clip(s_it, low, high) A_it)

    This is GSPO-token: tokens of one sequence may have different advantages, as in a tree. Where they have
    the same, value and gradient of the mean over a sequence are those of GSPO, min(s_i A_i, clip(s_i) A_i).

    Source: GSPO (arXiv 2507.18071). A mean over tokens first, then over sequences, is part of it.

    Args:
        logprobs, old_logprobs, advantages, clip_low, clip_high, trajectory: [M], see `sequence_log_ratio`.
    """
    log_ratio = sequence_log_ratio(logprobs, old_logprobs, trajectory).detach()
    ratio = (log_ratio + logprobs - logprobs.detach()).exp()
    return torch.minimum(ratio * advantages, torch.clamp(ratio, clip_low, clip_high) * advantages)
