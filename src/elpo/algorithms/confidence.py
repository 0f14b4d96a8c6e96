"""How sure the draws of a search make us of the step it names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def critical_posterior(drawn: Sequence[int], successes: Sequence[int]) -> np.ndarray:
    """The probability of every step to be the first irrecoverable one, given all draws. float64 [K + 1]

    With t the critical step, no suffix from anchor t or later ever succeeds, and one from an earlier anchor
    succeeds with some rate p, about which nothing is known before. Every step is equally likely before:

        P(t | draws) ∝ [Σ_{m ≥ t} s_m = 0] · ∫ p^S (1 − p)^F dp = [...] · B(S + 1, F + 1),

    S and F the successes and failures at the anchors m < t. So four failures where elsewhere nearly all
    succeed are telling, and where elsewhere nearly all fail they are not. Deviation from the truth: p is the
    same at all recoverable anchors, though it grows towards the end of a trajectory.

    Not in the paper, whose search takes no success in X suffixes as proof.

    Args:
        drawn: suffixes drawn at anchors 0 (the prompt) to K; 0 where none were.
        successes: how many of them succeeded.

    Raises:
        ValueError: unequal lengths, no prompt, or more successes than draws.

    >>> critical_posterior([0, 4, 0, 4], [0, 3, 0, 0]).round(2)  # three tool steps, the second never probed
    array([0.  , 0.49, 0.49, 0.02])
    """
    if len(drawn) != len(successes) or not drawn:
        raise ValueError(
            f"{len(drawn)} counts of draws and {len(successes)} of successes: one each an anchor"
        )
    if any(not 0 <= s <= n for n, s in zip(drawn, successes, strict=True)):
        raise ValueError(f"{list(successes)} successes of {list(drawn)} draws")
    total = np.cumsum(drawn)
    succeeded = np.cumsum(successes)
    log_weights = np.full(len(drawn), -np.inf)
    for before in range(len(drawn)):  # anchors 0..before are recoverable: the critical step is before + 1
        if succeeded[before] == succeeded[-1]:
            s, n = int(succeeded[before]), int(total[before])
            log_weights[before] = math.lgamma(s + 1) + math.lgamma(n - s + 1) - math.lgamma(n + 2)
    weights = np.exp(log_weights - log_weights.max())
    return np.asarray(weights / weights.sum())
