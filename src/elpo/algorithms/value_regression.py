"""A*-PO: the policy's log-ratio is fitted to how much better than optimal value a trajectory was."""

from __future__ import annotations

import torch
from torch import Tensor


def value_regression(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    trajectory: Tensor,
    weight: float = 1e-3,
) -> Tensor:
    """Minus the squared error of a trajectory, at each of its tokens; to be maximised. [M]

        J_i = − ( β₂ Σ_t (log π_θ − log π_ref) − A_i )²,   A_i = R_i − V*

    With a mean over tokens first and sequences then, the loss is the mean of the squared errors. A_i is the
    mean of what the tokens of the trajectory have; in A*-PO they have the same. There is no ratio to clip,
    and a trajectory whose advantage is 0 has a gradient too.

    Source: A*-PO (arXiv 2505.20686), stage 2. Deviation: feedback tokens are in neither sum.

    Args:
        logprobs, reference_logprobs: of sampled tokens, nats, [M].
        advantages: [M].
        trajectory: int64 [M], the number of the token's trajectory.
        weight: β₂, of the log-ratio.
    """
    num = int(trajectory.max()) + 1 if len(trajectory) else 0
    zeros = logprobs.new_zeros(num)
    log_ratios = zeros.index_add(0, trajectory, logprobs - reference_logprobs)
    counts = zeros.index_add(0, trajectory, torch.ones_like(advantages)).clamp(min=1)
    targets = zeros.index_add(0, trajectory, advantages) / counts
    return -((weight * log_ratios - targets) ** 2)[trajectory]
