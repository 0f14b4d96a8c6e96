"""How far a policy is from a reference, token by token, as a penalty on the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from elpo.algorithms.surrogate import log_ratio

KLEstimator = Literal["k2", "k3"]

ESTIMATORS: Mapping[KLEstimator, Callable[[Tensor], Tensor]] = {
    "k2": lambda r: r.square() / 2,
    "k3": lambda r: r.exp() - r - 1,
}


def reference_kl(logprobs: Tensor, reference_logprobs: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """An estimate of KL(π_θ ‖ π_ref) in nats from each sampled token; never negative, same shape.

    With r = log π_ref − log π_θ:

        k2 = r² / 2,    k3 = exp(r) − r − 1.

    For tokens of π_θ the mean of k3 is the KL itself, that of k2 is near it. Of the gradients k2's is that of
    the KL on average, k3's that of KL(π_ref ‖ π_θ). −r alone (k1) is not offered: it estimates the KL without
    bias, but as a term of the loss its gradient is zero on average.

    Source: Schulman, "Approximating KL divergence" (2020); k3 is GRPO's (arXiv 2402.03300, Eq. 4). The ELPO
    paper has no such term.

    Args:
        logprobs: of the policy being trained, nats; the one with a gradient.
        reference_logprobs: same shape.
    """
    return ESTIMATORS[estimator](log_ratio(reference_logprobs, logprobs))
