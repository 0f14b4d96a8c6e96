"""How a rollout tree grows: strategies decide what to draw next and never draw it themselves.

A strategy is a generator. It yields a `RolloutRequest` and is sent the leaves that were added to the tree
for it; it calls no model, tool or clock. The driver spends the ledger and adds to the tree. Some draws may
be lost to infrastructure faults: then fewer leaves come back than were asked for, and those rollouts stay
spent. Every request costs at least one rollout, so a strategy always ends, at exactly the whole budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.localization import Bisection, Loop, entropy_gaps, num_suffixes, select_trajectory
from elpo.tree import ROOT, RolloutTree
from elpo.types import Localization, Outcome, Probe, Step


@dataclass(frozen=True)
class RolloutRequest:
    """Ask for `num_rollouts` trajectories that continue node `prefix` (`ROOT`: from the prompt).

    Raises:
        ValueError: for less than one, which no answer would follow.
    """

    prefix: int
    num_rollouts: int

    def __post_init__(self) -> None:
        at_least("num_rollouts", self.num_rollouts, 1)


Search = Generator[RolloutRequest, list[int], None]
Strategy = Callable[[RolloutTree, BudgetLedger, np.random.Generator], Search]
LeafSearch = Callable[[RolloutTree, int, BudgetLedger], Search]
Draw = Callable[[RolloutTree, RolloutRequest], Sequence[tuple[Sequence[Step], Outcome] | None]]


def independent() -> Strategy:
    """Independent trajectories from the prompt, all at once: the group of GRPO and its relatives."""

    def strategy(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
        if ledger.remaining:
            yield from ask(ROOT, ledger.remaining, ledger)

    return strategy


def random_prefix(num_chains: int = 4) -> Strategy:
    """Random branching: independent chains, then suffixes from random prefixes of each of them.

    M chains are drawn from the prompt; the rest of the budget is dealt to them in turn, and each share
    continues a prefix drawn uniformly, with replacement, from the chain's non-leaf nodes and the prompt.
    With 16 rollouts and M = 4 every chain is expanded N = 3 times.

    Paper: ELPO's ablation "without BEL". Tree-GRPO (arXiv 2509.21240), one round (L = 1), M(LN + 1) leaves.
    Deviation: a budget that M does not divide is dealt one by one, so it is always exactly spent.

    Raises:
        ValueError: if `num_chains` is less than 1.
    """
    at_least("num_chains", num_chains, 1)

    def strategy(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
        if not ledger.remaining:
            return
        chains = yield from ask(ROOT, min(num_chains, ledger.remaining), ledger)
        pools = [[ROOT, *tree.path(leaf)[:-1]] for leaf in chains] or [[ROOT]]
        prefixes = [int(rng.choice(pools[i % len(pools)])) for i in range(ledger.remaining)]
        for prefix, num_rollouts in sorted(Counter(prefixes).items()):
            yield from ask(prefix, num_rollouts, ledger)

    return strategy


def bel(
    max_failures: int = 3,
    min_suffixes: int = 1,
    max_suffixes: int = 3,
    entropy_slope: float = 5.0,
    entropy_tokens: int = 20,
    loop: Loop = "figure",
) -> Strategy:
    """Branching for error localization: collect failures, search one of them by bisection, repeat.

    Each cycle draws trajectories from the prompt until `max_failures` (B_max) of them failed, asking for
    as many at a time as are missing, so that the buffer never overshoots; successes stay in the tree. The
    buffer is emptied, and the failure with the largest entropy gap is searched (see `localize`). Suffixes
    never enter the buffer. If no failure called a tool there is nothing to search and collecting goes on;
    if the budget ends while collecting, nothing is recorded. An easy problem thus gets plain independent
    rollouts.

    Paper: Algorithm 1, Eq. 3-5. Deviation: the tree keeps every rollout, not only the searched ones (as in
    Fig. 4); success is the correctness flag, whatever the reward.

    Args:
        max_failures: B_max, failures collected before each search.
        min_suffixes: X_min, fewest suffixes drawn at an anchor.
        max_suffixes: X_max, most suffixes drawn at an anchor.
        entropy_slope: β, per nat.
        entropy_tokens: sampled tokens at the start of a step whose entropy is averaged; 0 = all.
        loop: form of the bisection, see `Bisection`.

    Raises:
        ValueError: for a count below 1, X_max below X_min, a negative window or an unknown loop.
    """
    search = _searcher(min_suffixes, max_suffixes, entropy_slope, entropy_tokens, loop)
    return search_failures(search, max_failures, entropy_tokens)


def search_failures(search: LeafSearch, max_failures: int, entropy_tokens: int) -> Strategy:
    """Collect failures, search the one of the largest entropy gap, repeat: `bel` with any search of a leaf.

    Raises:
        ValueError: if `max_failures` is less than 1.
    """
    at_least("max_failures", max_failures, 1)

    def strategy(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
        while ledger.remaining:
            failures: list[int] = []
            while ledger.remaining and len(failures) < max_failures:
                missing = min(max_failures - len(failures), ledger.remaining)
                leaves = yield from ask(ROOT, missing, ledger)
                failures += [leaf for leaf in leaves if not tree.outcomes[leaf].correct]
            chosen = select_trajectory(tree, failures, entropy_tokens)
            if chosen is not None and ledger.remaining:
                yield from search(tree, chosen, ledger)

    return strategy


def localize(
    leaf: int,
    min_suffixes: int = 1,
    max_suffixes: int = 3,
    entropy_slope: float = 5.0,
    entropy_tokens: int = 20,
    loop: Loop = "figure",
) -> Strategy:
    """Search one failed trajectory that is already in the tree for its first irrecoverable step.

    Appends one `Localization` to the tree. Its critical node is step t_crit of the path of `leaf`; the
    leaf itself if every anchor was recoverable. An anchor is judged by the suffixes that were drawn, even
    if the budget cut their number; one whose suffixes were all lost to faults is tried again. When the
    budget ends first the record says so: no critical node, `exact` False.

    Paper: Algorithm 1, the inner loop. Arguments and errors are those of `bel`; a `leaf` that succeeded or
    is not in the tree is a ValueError when the search starts.
    """
    return search_leaf(leaf, _searcher(min_suffixes, max_suffixes, entropy_slope, entropy_tokens, loop))


def search_leaf(leaf: int, search: LeafSearch) -> Strategy:
    """One search of one failed leaf that is in the tree; a ValueError when it starts if there is none."""

    def strategy(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
        if leaf not in tree.outcomes or tree.outcomes[leaf].correct:
            raise ValueError(f"node {leaf} is not a failed leaf: choose one whose outcome is not correct")
        return search(tree, leaf, ledger)

    return strategy


def grow(
    tree: RolloutTree, strategy: Strategy, ledger: BudgetLedger, rng: np.random.Generator, draw: Draw
) -> None:
    """Run a strategy to its end, one request after the other, with rollouts from your own agent.

    Args:
        tree: grows in place.
        draw: answers a request with one (steps, outcome) for each rollout, in the order drawn; None for a
            rollout that an infrastructure fault made unusable. The steps are those after the prefix.

    Raises:
        ValueError: if `draw` returns another number of rollouts than asked for.
    """
    search = strategy(tree, ledger, rng)
    request = next(search, None)
    while request is not None:
        ledger.spend(request.num_rollouts)
        rollouts = draw(tree, request)
        if len(rollouts) != request.num_rollouts:
            raise ValueError(f"{request} was answered with {len(rollouts)} rollouts: use None for a lost one")
        leaves = [tree.add(request.prefix, *rollout) for rollout in rollouts if rollout is not None]
        try:
            request = search.send(leaves)
        except StopIteration:
            return


def _searcher(
    min_suffixes: int, max_suffixes: int, entropy_slope: float, entropy_tokens: int, loop: Loop
) -> LeafSearch:
    """The bisection of one failed leaf, its settings checked and bound."""
    at_least("min_suffixes", min_suffixes, 1)
    at_least("max_suffixes", max_suffixes, min_suffixes)
    at_least("entropy_tokens", entropy_tokens, 0)
    Bisection.over(0, loop)

    def search(tree: RolloutTree, leaf: int, ledger: BudgetLedger) -> Search:
        path = tree.path(leaf)
        gaps = entropy_gaps(tree, leaf, entropy_tokens)
        interval = Bisection.over(len(path) - 1, loop)
        probes: list[Probe] = []
        while (anchor := interval.anchor) is not None and ledger.remaining:
            wanted = num_suffixes(gaps[anchor - 1], min_suffixes, max_suffixes, entropy_slope)
            leaves = yield from ask(path[anchor - 1], min(wanted, ledger.remaining), ledger)
            if leaves:
                num_successes = sum(tree.outcomes[i].correct for i in leaves)
                probes.append(Probe(path[anchor - 1], len(leaves), num_successes))
                interval = interval.narrowed(recoverable=num_successes > 0)
        critical = None if interval.critical is None else path[interval.critical - 1]
        tree.localizations.append(Localization(leaf, critical, tuple(probes), exact=interval.finished))

    return search


def ask(
    prefix: int, num_rollouts: int, ledger: BudgetLedger
) -> Generator[RolloutRequest, list[int], list[int]]:
    """One request and its leaves, for `yield from`; a driver that does not pay would never end."""
    spent = ledger.spent
    leaves = yield RolloutRequest(prefix, num_rollouts)
    if ledger.spent != spent + num_rollouts:
        raise ValueError(
            f"{num_rollouts} rollouts were drawn but {ledger.spent - spent} spent: spend each once"
        )
    return leaves


def at_least(name: str, value: int, bound: int) -> None:
    """Raises: ValueError where a setting is too small."""
    if value < bound:
        raise ValueError(f"{name} is {value}: use {bound} or more")
