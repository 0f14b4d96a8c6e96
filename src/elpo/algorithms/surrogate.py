"""PPO's loss of one token, how tokens add up, and what a clip did to them.

The loss of a batch is `-(token_weights * clipped_surrogate).sum()`. Weights are made for the whole batch and
then sliced like everything else, so the sum over micro-batches is the loss of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"]

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to ± this, as verl does, so that one wild token cannot make the batch infinite."""


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: Tensor | float,
    clip_high: Tensor | float,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped objective with bounds of its own for every token; to be maximised.

        ρ = exp(log π_θ − log π_old),   J = min(ρ A, clip(ρ, low, high) A)

    With `dual_clip` c, J is at least c·A where A < 0. Equal bounds everywhere make it PPO's.

    Paper: Eq. 12 with the bounds of Eq. 11. Deviation: the dual clip is verl's (3, or 10 in GRPO-TCR's
    scripts); the paper does not mention one, so it is off. The log-ratio is clamped (`MAX_LOG_RATIO`).

    Args:
        logprobs: of the sampled tokens under the policy being trained, nats. Any shape.
        old_logprobs: under the behaviour policy, at the same temperature. Same shape.
        advantages: same shape.
        clip_low: smallest ratio with a gradient where A < 0; same shape or a number.
        clip_high: largest ratio with a gradient where A > 0; same shape or a number.
        dual_clip: c > 1, or None for none.

    Returns:
        The objective of each token, same shape. Give padding finite values and no weight.

    Raises:
        ValueError: if `dual_clip` is not above 1.

    >>> negative, log = torch.tensor([-1.0, -1.0]), torch.tensor([0.7, 0.7]).log()
    >>> clipped_surrogate(log, torch.zeros(2), negative, torch.tensor([0.8, 0.685]), 1.315)
    tensor([-0.8000, -0.7000])
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip is {dual_clip}: use a number above 1, or None")
    ratio = log_ratio(logprobs, old_logprobs).exp()
    low, high = _bounds(ratio, clip_low, clip_high)
    objective = torch.minimum(ratio * advantages, torch.clamp(ratio, low, high) * advantages)
    return dual_clipped(objective, advantages, dual_clip)


def dual_clipped(objective: Tensor, advantages: Tensor, dual_clip: float | None) -> Tensor:
    """The objective, at least `dual_clip` times the advantage where that is negative. Same shape."""
    if dual_clip is None:
        return objective
    return torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)


def token_weights(
    mask: Tensor, aggregation: Aggregation = "seq-mean-token-mean", max_tokens: int | None = None
) -> Tensor:
    """How much each token counts in the loss of the batch. float32 [B, T], 0 where `mask` is.

        seq-mean-token-mean:      w_it = m_it / (B · Σ_t m_it)     every trajectory counts the same
        token-mean:               w_it = m_it / Σ_jt m_jt          every token counts the same
        seq-mean-token-sum-norm:  w_it = m_it / (B · `max_tokens`)  Dr.GRPO's constant divisor

    B counts the trajectories that have any sampled token, so rows of padding change nothing. Groups of
    unequal size count by trajectory. A shared prefix appears once in each trajectory through it.

    Paper: Eq. 1 is seq-mean-token-mean.

    Args:
        mask: [B, T], true on the tokens the policy sampled.
        aggregation: one of the above.
        max_tokens: the constant of seq-mean-token-sum-norm, usually the longest allowed response.

    Raises:
        ValueError: for an unknown aggregation, or where `max_tokens` is missing or not positive.

    >>> token_weights(torch.tensor([[1, 1], [1, 0]]))
    tensor([[0.2500, 0.2500],
            [0.5000, 0.0000]])
    """
    weights = mask.to(torch.float32)
    return weights / token_divisors(weights.sum(-1), aggregation, max_tokens)[:, None]


def token_divisors(lengths: Tensor, aggregation: Aggregation, max_tokens: int | None = None) -> Tensor:
    """What `token_weights` divides the mask of each trajectory by. Same shape and dtype as `lengths`.

    Args:
        lengths: Σ_t m_it, [B].
        aggregation, max_tokens: as in `token_weights`, with the same errors.
    """
    num_sequences = (lengths > 0).sum().clamp(min=1)
    match aggregation:
        case "seq-mean-token-mean":
            return lengths.clamp(min=1) * num_sequences
        case "token-mean":
            return lengths.sum().clamp(min=1).expand_as(lengths)
        case "seq-mean-token-sum-norm":
            if max_tokens is None or max_tokens < 1:
                raise ValueError(f"{aggregation} divides by max_tokens, which is {max_tokens}: use 1 or more")
            return torch.full_like(lengths, max_tokens) * num_sequences
    raise ValueError(f"unknown aggregation {aggregation!r}: use one of {get_args(Aggregation)}")


def normaliser(lengths: Tensor, aggregation: Aggregation) -> float:
    """What the divisors of all trajectories have in common: how many there are, or their tokens.

    The divisors of a part of a batch become those of the batch by the ratio of their normalisers. So
    processes that see a part each agree on the loss of all.

    Args:
        lengths, aggregation: as in `token_divisors`.
    """
    return float(lengths.sum() if aggregation == "token-mean" else (lengths > 0).sum())


@dataclass(frozen=True)
class SurrogateStatistics:
    """Weighted sums over tokens; those of micro-batches add up to those of the batch."""

    weight: float = 0.0
    clipped_low: float = 0.0  # A < 0 and ρ < low: no gradient
    clipped_high: float = 0.0  # A > 0 and ρ > high: no gradient
    error_weight: float = 0.0  # the same three inside the error region
    error_clipped_low: float = 0.0
    error_clipped_high: float = 0.0
    kl: float = 0.0
    ratio: float = 0.0
    ratio_max: float = 0.0
    reference_kl: float = 0.0  # only where the loss has a KL to a reference

    def __add__(self, other: SurrogateStatistics) -> SurrogateStatistics:
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return SurrogateStatistics(**sums | {"ratio_max": max(self.ratio_max, other.ratio_max)})

    def means(self) -> dict[str, float]:
        """Weighted means by name, and the largest ratio; a mean over no tokens is left out.

        `error_*` are those of the tokens in the error region, `other_*` of the rest. `approx_kl` is
        KL(π_old ‖ π_θ) in nats, estimated by ρ − 1 − log ρ, which is never negative.
        """
        means: dict[str, float] = {}
        rest = self.weight - self.error_weight
        if self.weight > 0:
            means["clip_fraction_low"] = self.clipped_low / self.weight
            means["clip_fraction_high"] = self.clipped_high / self.weight
            means["error_fraction"] = self.error_weight / self.weight
            means["approx_kl"] = self.kl / self.weight
            means["ratio_mean"] = self.ratio / self.weight
            means["ratio_max"] = self.ratio_max
        if self.error_weight > 0:
            means["error_clip_fraction_low"] = self.error_clipped_low / self.error_weight
            means["error_clip_fraction_high"] = self.error_clipped_high / self.error_weight
        if rest > 1e-6 * self.weight:
            means["other_clip_fraction_low"] = (self.clipped_low - self.error_clipped_low) / rest
            means["other_clip_fraction_high"] = (self.clipped_high - self.error_clipped_high) / rest
        return means


@torch.no_grad()
def surrogate_statistics(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: Tensor | float,
    clip_high: Tensor | float,
    weights: Tensor,
    error_region: Tensor | None = None,
    clipped_log_ratio: Tensor | None = None,
) -> SurrogateStatistics:
    """What the clip did to a batch, and how far the policy has moved.

    Args:
        logprobs, old_logprobs, advantages, clip_low, clip_high: as in `clipped_surrogate`.
        weights: how much a token counts, 0 on padding: a mask for fractions of tokens, or the loss's own.
            Same shape.
        error_region: bool, true on tokens whose lower bound is the wider one; None for nowhere. Same shape.
        clipped_log_ratio: what the bounds are applied to, where it is not the token's own. Same shape.
    """
    counted = weights > 0
    nats = torch.where(counted, log_ratio(logprobs, old_logprobs), 0.0).double()
    ratio = nats.exp()
    low, high = _bounds(ratio, clip_low, clip_high)
    bounded = ratio if clipped_log_ratio is None else clipped_log_ratio.double().exp()
    clipped_low = (advantages < 0) & (bounded < low)
    clipped_high = (advantages > 0) & (bounded > high)
    inside = torch.zeros_like(counted) if error_region is None else error_region.bool()
    kept = weights.double() * counted
    sums = torch.stack(
        [
            kept.sum(),
            (kept * clipped_low).sum(),
            (kept * clipped_high).sum(),
            (kept * inside).sum(),
            (kept * inside * clipped_low).sum(),
            (kept * inside * clipped_high).sum(),
            (kept * (ratio - 1 - nats)).sum(),
            (kept * ratio).sum(),
            (ratio * counted).amax() if counted.numel() else kept.sum(),
        ]
    )
    return SurrogateStatistics(*sums.tolist())  # one transfer from the device


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Log ρ in nats, clamped to ± `MAX_LOG_RATIO`. Same shape."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _bounds(ratio: Tensor, low: Tensor | float, high: Tensor | float) -> tuple[Tensor, Tensor]:
    """Both bounds as tensors that broadcast against `ratio`, in its dtype."""
    dtype, device = ratio.dtype, ratio.device
    return torch.as_tensor(low, dtype=dtype, device=device), torch.as_tensor(high, dtype=dtype, device=device)
