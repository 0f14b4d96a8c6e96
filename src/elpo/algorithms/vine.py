"""VinePPO: a state is worth what fresh continuations earn; a step's advantage is what it changed."""

from __future__ import annotations

import numpy as np

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.strategies import Search, Strategy, ask, at_least
from elpo.tree import ROOT, RolloutTree


def vine(num_chains: int = 2, num_samples: int = 3) -> Strategy:
    """Trajectories from the prompt, and some continuations after each of their tool steps to value them.

    `num_chains` trajectories are drawn, then `num_samples` from every prefix of the first, of the second and
    so on; when all are valued and budget is left, one more trajectory. The budget may end anywhere;
    `step_values` takes what there is.

    Source: VinePPO, arXiv 2410.01679. Deviation: there the continuations (9 a state) are not counted; here
    they cost as much as any rollout, and few are affordable.

    Raises:
        ValueError: if a count is less than 1.
    """
    at_least("num_chains", num_chains, 1)
    at_least("num_samples", num_samples, 1)

    def strategy(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
        wanted = num_chains
        while ledger.remaining:
            chains = yield from ask(ROOT, min(wanted, ledger.remaining), ledger)
            for anchor in [anchor for chain in chains for anchor in tree.path(chain)[:-1]]:
                if ledger.remaining:
                    yield from ask(anchor, min(num_samples, ledger.remaining), ledger)
            wanted = 1

    return strategy


def step_values(tree: RolloutTree) -> np.ndarray:
    """What every step of the trajectories from the prompt changed in the expected reward. [N]

        A = V(next state) − V(state),   V(final) = R(τ)

    V of a state after a tool step is the mean reward of the rollouts drawn from there, the trajectory itself
    not among them; of the prompt, that of the other trajectories from it (its own reward if there is none).
    Steps between two valued states share the difference, so that the advantages along a trajectory tell all
    of R(τ) − V(prompt) whatever was valued. The continuations themselves are not trained on: they have 0.

    Source: VinePPO, arXiv 2410.01679, with γ = 1. Deviations: the prompt is valued by leave-one-out, not by
    continuations of its own; equal states reached by different trajectories are not merged; no whitening over
    the batch, which would give the continuations an advantage.
    """
    drawn: dict[int, list[int]] = {}
    for leaf in tree.outcomes:
        drawn.setdefault(tree.prefix(leaf), []).append(leaf)
    reward = {leaf: outcome.reward for leaf, outcome in tree.outcomes.items()}
    values = {node: float(np.mean([reward[leaf] for leaf in leaves])) for node, leaves in drawn.items()}
    advantages = np.zeros(len(tree.nodes))
    chains = drawn.get(ROOT, [])
    for chain in chains:
        others = [reward[leaf] for leaf in chains if leaf != chain]
        before = float(np.mean(others)) if others else reward[chain]
        stretch: list[int] = []
        for node in tree.path(chain):
            stretch.append(node)
            value = reward[chain] if node == chain else values.get(node)
            if value is not None:
                advantages[stretch] = value - before
                before, stretch = value, []
    return advantages
