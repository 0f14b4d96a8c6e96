"""Advantages of whole trajectories: what a reward is compared with, where it is not the group's z-score.

Each function answers with one float64 number a node, [N], in the order of `tree.nodes`: the mean, over the
trajectories through the node, of R(τ) − baseline. Without shared prefixes that is the trajectory's own
number on all of its tokens.
"""

from __future__ import annotations

import numpy as np

from elpo.algorithms.advantage import mean_over_leaves_below
from elpo.tree import RolloutTree


def raw_rewards(tree: RolloutTree) -> np.ndarray:
    """R, with nothing taken off. [N]

    Source: REINFORCE++ (arXiv 2501.03262), whose only baseline is the mean of the batch (`whiten`).
    """
    return mean_over_leaves_below(tree, _rewards(tree))


def leave_one_out_advantages(tree: RolloutTree) -> np.ndarray:
    """R less the mean of the other rollouts, an unbiased baseline. [N]

        A_i = R_i − 1/(G − 1) Σ_{j≠i} R_j = G/(G − 1) (R_i − mean(R))

    Source: RLOO (arXiv 2402.14740). Deviation: a group of one has nothing to compare with and gets 0; verl
    gives it its raw reward.
    """
    rewards = _rewards(tree)
    centred = _centred(rewards)
    return mean_over_leaves_below(tree, centred * len(rewards) / max(1, len(rewards) - 1))


def floored_advantages(tree: RolloutTree, floor: float = 0.0) -> np.ndarray:
    """R less the group's mean, but at least less `floor`: what counts as wrong is never reinforced. [N]

        A_i = R_i − max(floor, mean(R)),   no division by the deviation

    `floor` is the least reward of an answer that counts as right. As long as the group's mean lies below it,
    only such answers gain; above it this is Dr.GRPO's advantage. A group that failed altogether is pushed
    away from, where GRPO learns nothing from it.

    Source: CoRPO (arXiv 2511.04439), baseline max(R_min_correct, mean).
    """
    rewards = _rewards(tree)
    baseline = max(floor, float(rewards.mean())) if len(rewards) else floor
    return mean_over_leaves_below(tree, rewards - baseline)


def optimal_value_advantages(tree: RolloutTree, temperature: float = 0.5) -> np.ndarray:
    """R less the optimal value of the KL-regularised problem, estimated from the group. [N]

        V* = β₁ ln( 1/G Σ_i exp(R_i / β₁) ),   A_i = R_i − V*

    For β₁ → ∞ V* is the mean, for β₁ → 0 the largest reward.

    Source: A*-PO (arXiv 2505.20686), stage 1. Deviation: there the samples are drawn once, from the policy
    before training; `docs/algorithms/a-star-po.md` says why here they are the group itself.

    Raises:
        ValueError: if `temperature` is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}: use a number above 0")
    rewards = _rewards(tree)
    if not len(rewards):
        return rewards
    best = rewards.max()  # the exponentials stay within 0 and 1
    value = best + temperature * np.log(np.exp((rewards - best) / temperature).mean())
    return mean_over_leaves_below(tree, rewards - value)


def _rewards(tree: RolloutTree) -> np.ndarray:
    """R of every leaf, in the order drawn. float64 [leaves]"""
    return np.array([outcome.reward for outcome in tree.outcomes.values()], dtype=np.float64)


def _centred(rewards: np.ndarray) -> np.ndarray:
    """Deviations from the mean, exactly 0 where all are equal."""
    shifted: np.ndarray = rewards - rewards[:1]
    return shifted - shifted.mean() if len(shifted) else shifted
