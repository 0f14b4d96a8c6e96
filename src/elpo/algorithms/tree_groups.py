"""Tree-GRPO's advantage: how a trajectory compares with its own tree, and with all trees of the prompt."""

from __future__ import annotations

import numpy as np

from elpo.algorithms.advantage import Std, mean_over_leaves_below, standardize
from elpo.algorithms.strategies import at_least
from elpo.tree import ROOT, RolloutTree


def tree_group_advantages(
    tree: RolloutTree, num_chains: int = 4, std: Std = "sample", scale: bool = True, eps: float = 1e-6
) -> np.ndarray:
    """The sum of two z-scores of a leaf, and for every node the mean over the leaves below it. [N]

        A(τ) = (R − μ_tree) / (σ_tree + ε) + (R − μ_all) / (σ_all + ε)

    A prompt's rollouts form `num_chains` trees, each grown from one trajectory (`chain_of`).

    Source: Tree-GRPO, arXiv 2509.21240, Eq. 5-7 and its code (sample deviation, 1e-6).
    """
    rewards = np.array([outcome.reward for outcome in tree.outcomes.values()])
    chains = chain_of(tree, num_chains)
    within = np.zeros(len(rewards))
    for chain in set(chains.tolist()):
        within[chains == chain] = standardize(rewards[chains == chain], std, scale, eps)
    return mean_over_leaves_below(tree, within + standardize(rewards, std, scale, eps))


def chain_of(tree: RolloutTree, num_chains: int) -> np.ndarray:
    """Which of the trees of a prompt each leaf belongs to, in the order drawn. int64 [number of leaves]

    The first `num_chains` trajectories from the prompt start a tree each. A later one is the expansion of
    some tree's root; nothing tells whose, and as such draws are alike it is counted to the smallest tree.
    With `elpo.algorithms.strategies.random_prefix`, which expands all trees equally often, this is the
    method's own distribution.

    Raises:
        ValueError: if `num_chains` is less than 1.
    """
    at_least("num_chains", num_chains, 1)
    heads = [tree.path(leaf)[0] for leaf in tree.outcomes]
    roots = {head: i for i, head in enumerate(tree.children().get(ROOT, [])[:num_chains])}
    chains = np.array([roots.get(head, -1) for head in heads], dtype=np.int64)
    for i in np.flatnonzero(chains < 0):
        chains[i] = np.bincount(chains[chains >= 0], minlength=len(roots)).argmin()
    return chains
