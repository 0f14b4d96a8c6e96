"""CISPO and plain REINFORCE: the gradient is that of a weighted log-likelihood, so no token loses its own."""

from __future__ import annotations

import torch
from torch import Tensor

from elpo.algorithms.surrogate import log_ratio


def weighted_likelihood(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_high: Tensor | float
) -> Tensor:
    """Log π_θ, weighted by the advantage and by a capped importance ratio that gets no gradient. Same shape.

        J = sg[min(ρ, high)] A log π_θ

    Source: CISPO (arXiv 2506.13585, MiniMax-M1). Its lower bound is not used there, so there is none here.

    Args:
        logprobs, old_logprobs, advantages: of any one shape, log-probabilities in nats.
        clip_high: the largest weight; same shape or a number.
    """
    ratio = log_ratio(logprobs, old_logprobs).detach().exp()
    cap = torch.as_tensor(clip_high, dtype=ratio.dtype, device=ratio.device)
    return torch.minimum(ratio, cap) * advantages * logprobs


def likelihood(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Log π_θ weighted by the advantage: the gradient of REINFORCE, with no ratio and no clip. Same shape.

    Summed over the tokens of a sequence it treats the sequence as one action.

    Source: RLOO (arXiv 2402.14740). Unbiased only while the policy is the one that sampled.
    """
    return advantages * logprobs
