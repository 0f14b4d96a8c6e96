"""VPPO's advantage: a failure is credited for the good steps before its first error."""

from __future__ import annotations

import numpy as np

from elpo.algorithms.advantage import first_wrong_nodes
from elpo.tree import RolloutTree


def prefix_reward_advantages(tree: RolloutTree, prefix_reward: float = 0.5) -> np.ndarray:
    """How a node's value compares with the mean value of the responses. [N]

        V(token) = 1 in a correct trajectory; α before the first error of a failure, 0 from it on
        A(token) = V(token) − mean_i V(response_i),   V(response) = 1, or α |prefix| / |o|

    Lengths count sampled tokens. The first error is that of `elpo.algorithms.advantage.first_wrong_nodes`:
    the shallowest step no success passes through, which in a searched trajectory is the critical step BEL
    found; a failure that nobody branched from has no good prefix. A shared node has the mean over its
    trajectories.

    Source: VPPO ("Save the good prefix"), arXiv 2601.18984, α = 0.5, no deviation. Deviations: BEL's critical
    step stands in for the process reward model; the prefix is not shortened, and its negative advantages are
    kept (both are options of the method); the trajectory's correctness is its reward.

    Raises:
        ValueError: if `prefix_reward` lies outside [0, 1].
    """
    if not 0 <= prefix_reward <= 1:
        raise ValueError(f"prefix_reward is {prefix_reward}: use a number from 0 to 1")
    wrong = first_wrong_nodes(tree)
    lengths = np.array([node.step.sampled.sum() for node in tree.nodes])
    totals, counts = np.zeros(len(tree.nodes)), np.zeros(len(tree.nodes))
    responses = []
    for leaf in tree.outcomes:
        path = np.array(tree.path(leaf))
        good = prefix_reward * (path < wrong[leaf]) if leaf in wrong else np.ones(len(path))
        weights = lengths[path]
        responses.append(float(good @ weights) / max(1, int(weights.sum())))
        totals[path] += good
        counts[path] += 1
    advantages: np.ndarray = totals / np.maximum(counts, 1) - (np.mean(responses) if responses else 0.0)
    return advantages
