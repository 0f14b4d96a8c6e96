"""The surrogates by name: what is maximised for each token. How tokens add up is `loss.aggregation`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from elpo.algorithms.surrogate import clipped_surrogate
from elpo.config import AlgorithmConfig


@dataclass(frozen=True, eq=False)
class TokenTerms:
    """What a surrogate may look at: tensors of one shape, about the same tokens."""

    logprobs: Tensor  # under the policy being trained, nats; the one with a gradient
    entropies: Tensor  # of the distributions they are from, nats
    old_logprobs: Tensor  # under the behaviour policy
    advantages: Tensor
    clip_low: Tensor  # smallest ratio with a gradient where A < 0
    clip_high: Tensor  # largest ratio with a gradient where A > 0


Surrogate = Callable[[TokenTerms, AlgorithmConfig], Tensor]
"""The objective of each token, to be maximised; same shape as the terms."""

SURROGATES: Mapping[str, Surrogate] = {
    "ppo": lambda t, a: clipped_surrogate(
        t.logprobs, t.old_logprobs, t.advantages, t.clip_low, t.clip_high, a.clip.dual
    ),
}
"""What `loss.surrogate` may be. A new one: a pure function in a file of its own, a line here, a name in the
Literal of `LossConfig`."""
