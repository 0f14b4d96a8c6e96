"""GiGPO's advantage: the trajectory against its group, and each step against others from the same state."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import numpy as np

from elpo.algorithms.advantage import Std, standardize, trajectory_advantages
from elpo.tree import ROOT, RolloutTree

Anchor = Literal["observation", "prefix"]


def anchor_group_advantages(
    tree: RolloutTree,
    anchor: Anchor = "observation",
    discount: float = 0.95,
    step_weight: float = 1.0,
    std: Std = "sample",
    scale: bool = True,
    eps: float = 1e-6,
) -> np.ndarray:
    """Episode term plus weighted step term of every node. [N]

        A = A_E + w A_S,   A_S = (γ^(T − k) R − μ_g) / (σ_g + ε),   step k of T, g: all steps from a state

    A_E is the trajectory's z-score. A state is what the environment showed last (`observation`, the method's
    own: the tool's answer, or the prompt), wherever it recurs in the group; or the whole path to it
    (`prefix`), so that in a tree the groups are what continues one node. A step alone in its state has
    A_S = 0. A node of several trajectories is one step in each of them and has the mean of theirs.

    Source: GiGPO, arXiv 2505.10978, Eq. 3-9, and verl-agent's code (sample deviation, 1e-6). Deviations: the
    mean over episodes is taken once a trajectory, as printed (the code's default takes it over steps, so that
    longer trajectories weigh more); rewards come at the end only; a group of one episode has 0.

    Raises:
        ValueError: for an unknown anchor, or a discount outside [0, 1].
    """
    if anchor not in ("observation", "prefix"):
        raise ValueError(f"unknown anchor {anchor!r}: use 'observation' or 'prefix'")
    if not 0 <= discount <= 1:
        raise ValueError(f"discount is {discount}: use a number from 0 to 1")
    groups: dict[Hashable, list[tuple[int, float]]] = {}  # (node, return) of every step from a state
    for leaf, outcome in tree.outcomes.items():
        path = tree.path(leaf)
        for left, node in enumerate(reversed(path)):
            groups.setdefault(_state(tree, node, anchor), []).append((node, discount**left * outcome.reward))
    totals, counts = np.zeros(len(tree.nodes)), np.zeros(len(tree.nodes))
    for samples in groups.values():
        nodes, returns = zip(*samples, strict=True)
        np.add.at(totals, list(nodes), standardize(np.array(returns), std, scale, eps))
        np.add.at(counts, list(nodes), 1)
    steps = totals / np.maximum(counts, 1)
    advantages: np.ndarray = trajectory_advantages(tree, std, scale, eps) + step_weight * steps
    return advantages


def _state(tree: RolloutTree, node: int, anchor: Anchor) -> Hashable:
    """The state a step was taken in; nodes and observations never collide."""
    parent = tree.nodes[node].parent
    if parent == ROOT or anchor == "prefix":
        return parent
    seen = tree.nodes[parent].step.tool_result
    return parent if seen is None else seen.output
