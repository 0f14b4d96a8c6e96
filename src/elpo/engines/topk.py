"""Entropy from the most likely tokens alone, where an engine does not give the whole distribution."""

from __future__ import annotations

import math
from collections.abc import Iterable


def grouped_entropy(top_logprobs: Iterable[float]) -> float:
    """A lower bound of an entropy, in nats: the k most likely tokens one by one, all others as one.

        Ĥ = − Σ_k p_i log p_i − r log r,   r = 1 − Σ_k p_i

    Bias: by the chain rule H = Ĥ + r · H(others), so that 0 ≤ H − Ĥ ≤ r log(V − k). It vanishes with the mass
    r of the rest, which is where a policy is sure of itself, and is largest where it is not: differences
    between uncertain steps are understated.

    Args:
        top_logprobs: of the k most likely tokens, nats, in any order.

    >>> round(grouped_entropy([math.log(0.5), math.log(0.25)]), 4)  # the rest has 0.25: as of 3 tokens
    1.0397
    """
    kept = [math.exp(value) for value in top_logprobs]
    rest = 1.0 - math.fsum(kept)
    # rounding can leave less than nothing, or a rest that is not there
    parts = [*kept, rest] if rest > 1e-6 else kept
    return max(0.0, -math.fsum(p * math.log(p) for p in parts if p > 0))
