"""What a finished tree says about each of its nodes: all a trainer needs to know of the search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elpo.algorithms.advantage import Std, branch_advantages, hierarchical_advantages, trajectory_advantages
from elpo.algorithms.clipping import ClipScope, clip_bounds
from elpo.tree import RolloutTree


@dataclass(frozen=True, eq=False)
class Credit:
    """One number a node; every sampled token of the node takes it. N nodes, in `tree.nodes` order."""

    advantages: np.ndarray  # float64 [N], Eq. 10
    branch: np.ndarray  # float64 [N], Eq. 7
    trajectory: np.ndarray  # float64 [N], Eq. 9
    clip_low: np.ndarray  # float64 [N], smallest ratio that still gets a gradient, Eq. 11
    clip_high: np.ndarray  # float64 [N], largest
    own: np.ndarray | None = None  # float64 by leaf, in the order drawn: in place of `advantages`, everywhere


def assign_credit(
    tree: RolloutTree,
    *,
    branch_weight: float = 0.5,
    std: Std = "population",
    scale: bool = True,
    eps: float = 1e-6,
    eps_low: float = 0.2,
    eps_high: float = 0.315,
    eps_elc: float = 0.115,
    scope: ClipScope = "subtree",
) -> Credit:
    """Turn a finished tree into advantages and clip bounds; a tree without rollouts gives empty arrays.

    The defaults are ELPO's. On a tree of independent rollouts `std="sample"`, `eps_elc=0` is GRPO.

    Paper: Eq. 6-11.

    Raises:
        ValueError: for a setting out of range, see `hierarchical_advantages` and `clip_bounds`.
    """
    clip_low, clip_high = clip_bounds(tree, eps_low, eps_high, eps_elc, scope)
    return Credit(
        advantages=hierarchical_advantages(tree, branch_weight, std, scale, eps),
        branch=branch_advantages(tree, std, scale, eps),
        trajectory=trajectory_advantages(tree, std, scale, eps),
        clip_low=clip_low,
        clip_high=clip_high,
    )
