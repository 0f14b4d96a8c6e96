"""The surrogates by name: what is maximised for each token. How tokens add up is `loss.aggregation`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from elpo.algorithm_config import AlgorithmConfig, LossConfig
from elpo.algorithms.balanced import balanced_surrogate
from elpo.algorithms.cispo import likelihood, weighted_likelihood
from elpo.algorithms.gspo import sequence_log_ratio, sequence_surrogate
from elpo.algorithms.reference_kl import reference_kl
from elpo.algorithms.surrogate import clipped_surrogate
from elpo.algorithms.value_regression import value_regression


@dataclass(frozen=True, eq=False)
class TokenTerms:
    """What a surrogate may look at: tensors of one shape, about the same tokens."""

    logprobs: Tensor  # under the policy being trained, nats; the one with a gradient
    entropies: Tensor  # of the distributions they are from, nats
    old_logprobs: Tensor  # under the behaviour policy
    advantages: Tensor
    clip_low: Tensor  # smallest ratio with a gradient where A < 0
    clip_high: Tensor  # largest ratio with a gradient where A > 0
    reference_logprobs: Tensor | None = None  # under the policy that RL began with, where the loss has its KL
    trajectory: Tensor | None = None  # int64, the number of each token's; only for `BY_TRAJECTORY`

    @property
    def trajectories(self) -> Tensor:
        """`trajectory`, for a surrogate that needs it."""
        assert self.trajectory is not None, "the surrogate is missing from BY_TRAJECTORY"
        return self.trajectory

    def at(self, places: Tensor, trajectory: Tensor) -> TokenTerms:
        """The terms of the tokens at `places` int64 [M] of the flattened tensors, and their trajectories."""
        values = {name: v.flatten()[places] for name, v in vars(self).items() if isinstance(v, Tensor)}
        return TokenTerms(**values | {"trajectory": trajectory})


Surrogate = Callable[[TokenTerms, AlgorithmConfig], Tensor]
"""The objective of each token, to be maximised; same shape as the terms."""

SURROGATES: Mapping[str, Surrogate] = {
    "ppo": lambda t, a: clipped_surrogate(
        t.logprobs, t.old_logprobs, t.advantages, t.clip_low, t.clip_high, a.clip.dual
    ),
    "gspo": lambda t, a: sequence_surrogate(
        t.logprobs, t.old_logprobs, t.advantages, t.clip_low, t.clip_high, t.trajectories
    ),
    "cispo": lambda t, a: weighted_likelihood(t.logprobs, t.old_logprobs, t.advantages, t.clip_high),
    "reinforce": lambda t, a: likelihood(t.logprobs, t.advantages),
    "balanced": lambda t, a: balanced_surrogate(
        t.logprobs,
        t.old_logprobs,
        t.advantages,
        t.clip_low,
        t.clip_high,
        t.entropies,
        a.loss.entropy_bonus,
        a.clip.dual,
    ),
    "value_regression": lambda t, a: value_regression(
        t.logprobs, t.old_logprobs, t.advantages, t.trajectories, a.loss.log_ratio_weight
    ),
}
"""What `loss.surrogate` may be. A new one: a pure function in a file of its own, a line here, a name in the
Literal of `LossConfig`."""

BY_TRAJECTORY = frozenset({"gspo", "value_regression", "balanced"})
"""Surrogates of trajectories, or with statistics over their tokens. Their terms are [M], with a token of a
shared prefix once for each trajectory through it; for all others a token is there once."""

LEARN_FROM_ZERO = frozenset({"value_regression"})
"""Surrogates with a gradient where the advantage is 0."""


def objective(terms: TokenTerms, algorithm: AlgorithmConfig) -> Tensor:
    """The surrogate less the penalty for leaving the reference, where there is one; shape of the terms."""
    loss = algorithm.loss
    surrogate = SURROGATES[loss.surrogate](terms, algorithm)
    if terms.reference_logprobs is None:
        return surrogate
    return surrogate - loss.kl_weight * reference_kl(
        terms.logprobs, terms.reference_logprobs, loss.kl_estimator
    )


def learns_from_zero(loss: LossConfig) -> bool:
    """Whether a trajectory whose advantages are all 0 has a gradient; where not, it is left out."""
    return loss.surrogate in LEARN_FROM_ZERO or loss.kl_weight > 0


def clipped_log_ratio(terms: TokenTerms, algorithm: AlgorithmConfig) -> Tensor | None:
    """The log-ratio that the bounds are applied to, where it is not the token's own."""
    if algorithm.loss.surrogate != "gspo":
        return None
    return sequence_log_ratio(terms.logprobs, terms.old_logprobs, terms.trajectories)
