"""Choosing the next token: seeded by rollout and position, never by the batch around it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) that depend on (seed, position) alone: a counter-based generator.

    SplitMix64 (Steele, Lea, Flood 2014) of the seed advanced to the position; 53 bits are used.

    Args:
        seeds: uint64 [B]. positions: int [B], token positions in the context.

    Returns:
        float64 [B].
    """
    with np.errstate(over="ignore"):
        z = seeds.astype(np.uint64) + (positions.astype(np.uint64) + np.uint64(1)) * _GAMMA
        z = (z ^ (z >> np.uint64(30))) * _MIX[0]
        z = (z ^ (z >> np.uint64(27))) * _MIX[1]
        z ^= z >> np.uint64(31)
    fractions: np.ndarray = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return fractions


def sample(logits: Tensor, uniform: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invert the cumulative distribution at `uniform`.

    Args:
        logits: [B, V]. uniform: float64 [B] in [0, 1).
        temperature: of all rows, or of each, [B]. A row at 0 takes its likeliest token; its log-probability
            and entropy are those at temperature 1.

    Returns:
        token ids int64 [B]; their log-probabilities and the exact entropies (nats) of the distribution
        at `temperature`, float32 [B] each.
    """
    logprobs = log_probabilities(logits, temperature)
    probs = logprobs.exp()
    entropies = -(probs * logprobs).nan_to_num(0.0).sum(-1)
    cumulative = probs.double().cumsum(-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    tokens = (cumulative <= threshold).sum(-1).clamp(max=logits.shape[-1] - 1)
    if isinstance(temperature, Tensor):
        tokens = torch.where(temperature == 0, logits.argmax(-1), tokens)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0], entropies


def log_probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """The distribution `sample` draws from, float32 [B, V]; rows at temperature 0 as at 1."""
    if isinstance(temperature, Tensor):
        temperature = torch.where(temperature == 0, 1.0, temperature)[:, None]
    return torch.log_softmax(logits.float() / temperature, dim=-1)
