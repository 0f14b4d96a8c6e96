"""Advantages on the scale of a whole batch: what REINFORCE++ does instead of a group's deviation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from elpo.tree import RolloutTree

Whitening = Literal["none", "trajectories", "tokens"]


def whiten(
    trees: Sequence[RolloutTree],
    advantages: Sequence[np.ndarray],
    scope: Whitening = "trajectories",
    eps: float = 1e-6,
) -> list[np.ndarray]:
    """Advantages less their mean over all trees, over their standard deviation. float64 [N] for each tree.

        Â = (A − μ) / (σ + ε)

    μ and σ (with 1/(n − 1)) are over the batch: over `trajectories`, where each counts once whatever its
    length (the mean of A over its sampled tokens), or over `tokens`, where long ones count for more. A token
    of a shared prefix counts once for each trajectory through it. Without spread all are 0; "none" changes
    nothing.

    Source: REINFORCE++ (arXiv 2501.03262), whose text has N samples; verl's `masked_whiten` is over tokens
    and divides by √(σ² + 1e-8).

    Raises:
        ValueError: for an unknown scope.
    """
    if scope not in ("none", "trajectories", "tokens"):
        raise ValueError(f"unknown whitening {scope!r}: use 'none', 'trajectories' or 'tokens'")
    if scope == "none":
        return list(advantages)
    values: list[float] = []
    weights: list[float] = []
    for tree, of_node in zip(trees, advantages, strict=True):
        sizes = np.array([node.step.sampled.sum() for node in tree.nodes], dtype=np.float64)
        for leaf in tree.leaves:
            path = tree.path(leaf)
            if scope == "tokens":
                values += of_node[path].tolist()
                weights += sizes[path].tolist()
            elif sizes[path].any():
                values.append(float(np.average(of_node[path], weights=sizes[path])))
                weights.append(1.0)
    mean, deviation = _moments(np.array(values), np.array(weights))
    if not deviation:
        return [np.zeros_like(of_node) for of_node in advantages]
    return [(of_node - mean) / (deviation + eps) for of_node in advantages]


def _moments(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation of values that stand `counts` times; no deviation for under two."""
    total = counts.sum()
    if total < 2:
        return 0.0, 0.0
    shifted = values - values[0]  # equal values have exactly no deviation
    mean = (counts * shifted).sum() / total
    variance = (counts * (shifted - mean) ** 2).sum() / (total - 1)
    return float(values[0] + mean), float(np.sqrt(variance))
