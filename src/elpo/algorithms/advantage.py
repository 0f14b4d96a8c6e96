"""How much better than its siblings, and than the group, every node of a finished tree turned out.

Each function answers with one float64 number a node, [N], in the order of `tree.nodes`. Two-valued rewards
give the same advantages whatever the two values are, up to the epsilon.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from elpo.tree import ROOT, RolloutTree

Std = Literal["population", "sample"]


def standardize(
    values: np.ndarray, std: Std = "population", scale: bool = True, eps: float = 1e-6
) -> np.ndarray:
    """z-scores: how many standard deviations each value lies above the mean. float64, same shape.

        z_i = (v_i − μ) / (σ + ε)

    `std` is the population (1/n) or sample (1/(n−1)) one. With `scale` False only the mean is removed
    (Dr.GRPO). Values without spread, a single one included, score exactly 0; nothing scores nothing.
    Fig. 4 bounds ε by 6.6e-5; 1e-6 is also verl's.

    Deviation: verl gives a group of one its raw reward; here nothing to compare with means 0.

    >>> standardize(np.array([1.0, -1.0])).round(3)
    array([ 1., -1.])
    >>> standardize(np.array([-1.1, -1.1, -1.1]))
    array([0., 0., 0.])

    Raises:
        ValueError: if `std` is neither "population" nor "sample".
    """
    if std not in ("population", "sample"):
        raise ValueError(f"unknown std {std!r}: use 'population' or 'sample'")
    deviations = np.asarray(values - values[:1], dtype=np.float64)  # shifted: equal values are exactly 0
    if not deviations.any():
        return deviations
    deviations -= deviations.mean()
    if scale:
        deviations /= deviations.std(ddof=int(std == "sample")) + eps
    return deviations


def node_values(tree: RolloutTree) -> np.ndarray:
    """The expected reward from each node on, as far as it was sampled. [N]

        r(s) = R(τ) for a leaf,   1/|C(s)| Σ_{c ∈ C(s)} r(c) otherwise

    The mean is over direct children, not leaves: the reference continuation counts as one child beside
    the suffixes drawn there.

    Paper: Eq. 6.
    """
    children = tree.children()
    values = np.zeros(len(tree.nodes))
    for i in reversed(range(len(tree.nodes))):
        if i in tree.outcomes:
            values[i] = tree.outcomes[i].reward
        else:
            below = values[children[i]]
            values[i] = below[0] + (below - below[0]).mean()  # exact where all are equal
    return values


def branch_advantages(
    tree: RolloutTree, std: Std = "population", scale: bool = True, eps: float = 1e-6
) -> np.ndarray:
    """How a node's value compares with its siblings'. [N]

        A_b(c) = (r(c) − μ_b) / (σ_b + ε),   μ_b, σ_b over the children of one node

    The prompt is an ordinary branching node. An only child carries on its parent's advantage, so a linear
    segment has that of the branch it began with; an only first step has 0.

    Paper: Eq. 7; population std and inheritance from Fig. 4.
    """
    values = node_values(tree)
    advantages = np.zeros(len(tree.nodes))
    for parent, siblings in tree.children().items():  # a parent's own advantage is always set before
        if len(siblings) > 1:
            advantages[siblings] = standardize(values[siblings], std, scale, eps)
        elif parent != ROOT:
            advantages[siblings] = advantages[parent]
    return advantages


def trajectory_advantages(
    tree: RolloutTree, std: Std = "population", scale: bool = True, eps: float = 1e-6
) -> np.ndarray:
    """How the trajectories through a node compare with the whole group. [N]

        A_t(τ) = (R(τ) − μ_t) / (σ_t + ε),   A_t(s) = 1/|T(s)| Σ_{τ ∈ T(s)} A_t(τ)

    The group is every leaf, suffixes included; T(s) are the leaves below s. A leaf's entry is its own.

    Paper: Eq. 8-9.
    """
    rewards = np.array([outcome.reward for outcome in tree.outcomes.values()])
    return mean_over_leaves_below(tree, standardize(rewards, std, scale, eps))


def mean_over_leaves_below(tree: RolloutTree, values: np.ndarray) -> np.ndarray:
    """For every node the mean of what the leaves below it have; `values` in the order drawn. [N]

    Paper: the mean over T(s) in Eq. 9.
    """
    totals = np.zeros(len(tree.nodes))
    counts = np.zeros(len(tree.nodes))
    totals[tree.leaves] = values
    counts[tree.leaves] = 1
    for i in reversed(range(len(tree.nodes))):
        parent = tree.nodes[i].parent
        if parent != ROOT:
            totals[parent] += totals[i]
            counts[parent] += counts[i]
    totals /= counts
    return totals


def hierarchical_advantages(
    tree: RolloutTree,
    branch_weight: float = 0.5,
    std: Std = "population",
    scale: bool = True,
    eps: float = 1e-6,
) -> np.ndarray:
    """The advantage every sampled token of a node is trained with. [N]

        A = λ A_b + (1 − λ) A_t

    Without branching below the prompt both terms are the group's z-score, so GRPO is the special case for
    every λ (with `std="sample"` as verl computes it); `scale=False` makes it Dr.GRPO's.

    Paper: Eq. 10, λ = 0.5.

    Raises:
        ValueError: if `branch_weight` lies outside [0, 1].
    """
    if not 0 <= branch_weight <= 1:
        raise ValueError(f"branch_weight is {branch_weight}: use a number from 0 to 1")
    branch = branch_advantages(tree, std, scale, eps)
    trajectory = trajectory_advantages(tree, std, scale, eps)
    advantages: np.ndarray = trajectory + branch_weight * (branch - trajectory)  # exact for equal terms
    return advantages


def has_success(tree: RolloutTree) -> np.ndarray:
    """Whether any trajectory through a node is correct. bool [N]"""
    success = np.zeros(len(tree.nodes), dtype=bool)
    for i in reversed(range(len(tree.nodes))):
        success[i] |= i in tree.outcomes and tree.outcomes[i].correct
        if tree.nodes[i].parent != ROOT:
            success[tree.nodes[i].parent] |= success[i]
    return success


def first_wrong_nodes(tree: RolloutTree) -> dict[int, int]:
    """For every failed leaf the shallowest node on its path that no success passes through.

    Read from the finished tree, it covers failures nobody searched, which then usually point at their
    first step; for a searched one it is the critical node the bisection found.

    Paper: the "FW" labels of Fig. 4.
    """
    success = has_success(tree)
    return {
        leaf: next(node for node in tree.path(leaf) if not success[node])
        for leaf, outcome in tree.outcomes.items()
        if not outcome.correct
    }
