"""Error localization by posterior: ask where it tells most, answer with the likeliest step."""

from __future__ import annotations

import numpy as np

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.localization import step_entropy
from elpo.algorithms.recoverability import Belief, belief, best_look, prior_over_steps
from elpo.algorithms.strategies import (
    LeafSearch,
    Search,
    Strategy,
    ask,
    at_least,
    search_failures,
    search_leaf,
)
from elpo.tree import ROOT, RolloutTree
from elpo.types import Localization, Probe


def posterior(
    max_failures: int = 3,
    max_suffixes: int = 3,
    confidence: float = 0.9,
    round_cost: float = 0.0,
    informed: bool = True,
    search_limit: int = 3,
    entropy_tokens: int = 20,
) -> Strategy:
    """ELPO's search with a posterior over the critical step in place of bisection.

    As in `elpo.algorithms.strategies.bel`, failures are collected, and that of the largest entropy gap is
    searched, until the budget ends. The search draws suffixes where they are expected to tell most about an
    anchor for their price (`elpo.algorithms.recoverability.best_look`). It stops when one step is the first
    irrecoverable one with probability `confidence`, after `search_limit` suffixes, or with the budget. Every
    rollout the tree holds from the prompt or from a prefix of the searched trajectory counts as evidence.

    Deviation: not in the paper, whose search takes an anchor whose one to three suffixes fail as lost.
    `docs/algorithms/elpo-posterior.md` has the comparison.

    Args:
        max_failures: B_max, failures collected before each search.
        max_suffixes: most suffixes drawn at an anchor at a time; without a price for rounds it is always one.
        confidence: probability at which a search is finished.
        round_cost: how many rollouts it is worth to save one round of waiting.
        informed: whether the policy's own uncertainty says which steps are likelier wrong (`step_weights`).
        search_limit: most suffixes of one search; bisection takes about five. More name the step more often,
            but leave fewer rollouts that tell right from wrong (`docs/LOG.md`).
        entropy_tokens: as in `bel`; for the choice of the trajectory, and for `informed`.

    Raises:
        ValueError: for a count below 1, a confidence outside (0, 1) or a negative price.
    """
    at_least("search_limit", search_limit, 1)
    search = _searcher(max_suffixes, confidence, round_cost, informed, entropy_tokens, search_limit)
    return search_failures(search, max_failures, entropy_tokens)


def localize_posterior(
    leaf: int,
    max_suffixes: int = 3,
    confidence: float = 0.9,
    round_cost: float = 0.0,
    informed: bool = True,
    entropy_tokens: int = 20,
) -> Strategy:
    """Search one failed trajectory that is already in the tree, with the whole budget or until sure.

    Appends one `Localization`: the likeliest critical step, `exact` where it reached `confidence`, and in
    `falls` every other step that more likely than not cost a third to three quarters of the chance of
    success. Arguments and errors are those of `posterior`; a `leaf` that succeeded is a ValueError when the
    search starts.
    """
    return search_leaf(leaf, _searcher(max_suffixes, confidence, round_cost, informed, entropy_tokens))


def evidence(tree: RolloutTree, leaf: int) -> tuple[np.ndarray, np.ndarray]:
    """Successes and number of the rollouts drawn from the prompt and each anchor of a path. Two [K + 1]."""
    anchors = {node: m for m, node in enumerate([ROOT, *tree.path(leaf)[:-1]])}
    successes, draws = np.zeros(len(anchors)), np.zeros(len(anchors))
    for other, outcome in tree.outcomes.items():
        m = anchors.get(tree.prefix(other))
        if m is not None:
            draws[m] += 1
            successes[m] += outcome.correct
    return successes, draws


def step_weights(tree: RolloutTree, leaf: int, entropy_tokens: int = 20) -> np.ndarray:
    """How much likelier than others each step of a path is wrong, by the policy's own doubts. [K + 1]

        w_t = (H_t / mean H + 0.1) (1 − p_t + 0.05)

    H_t is the entropy at the start of the step (`elpo.algorithms.localization.step_entropy`), p_t the
    probability of the whole step: a step the policy was sure of, or would nearly always have taken, is seldom
    its error. Long steps all have p_t near 0, and then only the entropies count; without tokens all weigh the
    same. The two constants keep every step possible; they were chosen on cold starts of the ledger task.
    """
    steps = [tree.nodes[node].step for node in tree.path(leaf)]
    entropies = np.array([step_entropy(step, entropy_tokens) for step in steps])
    chances = np.exp([float(step.logprobs[step.sampled].sum(dtype=np.float64)) for step in steps])
    known = ~np.isnan(entropies)
    mean = entropies[known].mean() if known.any() else 0.0
    doubts = np.where(known, entropies, mean) / mean if mean > 0 else np.ones(len(steps))
    weights: np.ndarray = (doubts + 0.1) * (1 - np.where(known, chances, 0.0) + 0.05)
    return weights


def state_of(tree: RolloutTree, leaf: int, weights: np.ndarray) -> Belief:
    """The posterior of a failed leaf's trajectory, given the whole tree and `weights` for its prior.

    The group's success rate is that of the rollouts from the prompt, with one success and one failure added.
    """
    successes, draws = evidence(tree, leaf)
    return belief(prior_over_steps((successes[0] + 1) / (draws[0] + 2), weights), successes, draws)


def _searcher(
    max_suffixes: int,
    confidence: float,
    round_cost: float,
    informed: bool,
    entropy_tokens: int,
    search_limit: int | None = None,
) -> LeafSearch:
    at_least("max_suffixes", max_suffixes, 1)
    at_least("entropy_tokens", entropy_tokens, 0)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: use a number between 0 and 1")
    if round_cost < 0:
        raise ValueError(f"round_cost is {round_cost}: use 0 or more")

    def search(tree: RolloutTree, leaf: int, ledger: BudgetLedger) -> Search:
        path = tree.path(leaf)
        weights = step_weights(tree, leaf, entropy_tokens) if informed else np.ones(len(path))
        probes: list[Probe] = []
        state = state_of(tree, leaf, weights)
        left = ledger.remaining if search_limit is None else min(search_limit, ledger.remaining)
        while state.critical.max() < confidence and left:
            anchor, wanted = best_look(state, min(max_suffixes, left), round_cost)
            left -= wanted
            leaves = yield from ask(path[anchor - 1], wanted, ledger)
            if leaves:
                num_successes = sum(tree.outcomes[i].correct for i in leaves)
                probes.append(Probe(path[anchor - 1], len(leaves), num_successes))
                state = state_of(tree, leaf, weights)
        likeliest = int(state.critical.argmax())
        falls = tuple(path[i] for i in range(likeliest) if state.falls[i] > 0.5)
        sure = bool(state.critical[likeliest] >= confidence)
        tree.localizations.append(Localization(leaf, path[likeliest], tuple(probes), sure, falls))

    return search
