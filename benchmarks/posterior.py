"""How often each localizer names the first irrecoverable step, at the same number of suffixes, no model.

    python benchmarks/posterior.py

One failed trajectory of K anchors, and two more rollouts from the prompt, are given; then suffixes are drawn
by the library's own strategies. Two worlds:

- flat    every prefix before the critical step succeeds with the chance s; the critical step is any one alike
- chain   each of K + 1 steps goes right with s^(1/(K+1)), so s is the chance of a rollout, the chance rises
          along a right path, and the critical step is the first wrong one of a failure

Localizers:

- rule       the paper's, one to three suffixes an anchor (two here: entropies say nothing in these worlds)
- rule x     the same with as many suffixes at each anchor as the budget allows
- scan       Mean@K: the budget spread evenly over all anchors; the step after the last anchor with a success
- posterior  the project's, until 0.95 sure or the budget ends
- told       the same greedy search by one who is told the world, its chances and its prior: a ceiling

The budget of 13 is what 16 rollouts leave after three failures. Exact: the share of the searches that name
the very step; spread is the standard deviation over seeds. Steps: steps sampled, which is what tokens cost.
Writes posterior.json and posterior.md to --out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from report import arguments, publish

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.posterior import localize_posterior
from elpo.algorithms.strategies import RolloutRequest, Search, Strategy, ask, grow, localize
from elpo.tree import ROOT, RolloutTree
from elpo.types import Localization, Outcome, Probe, Problem, Step, ToolResult, ToolStatus

_EMPTY = np.zeros(0)
STEP = Step(
    _EMPTY.astype(int), _EMPTY.astype(bool), _EMPTY, _EMPTY, tool_result=ToolResult(ToolStatus.OK, "")
)


class World:
    """The chance of success after 0..K steps of one failed trajectory, and its critical step."""

    def __init__(self, kind: str, num_anchors: int, success: float, rng: np.random.Generator) -> None:
        self.rng, self.steps = rng, 0
        if kind == "flat":
            self.critical = int(rng.integers(1, num_anchors + 2))
            chances = np.full(num_anchors + 1, success)
            self.prior = np.ones(num_anchors + 1)
        else:
            right = success ** (1 / (num_anchors + 1))
            self.prior = right ** np.arange(num_anchors + 1)
            self.critical = int(rng.choice(num_anchors + 1, p=self.prior / self.prior.sum())) + 1
            chances = right ** np.arange(num_anchors + 1, 0, -1)
        self.recoverable = chances.copy()
        chances[self.critical :] = 0
        self.chances = chances
        self.tree = RolloutTree(Problem("p", (), ""), _EMPTY.astype(int))
        self.leaf = self.tree.add(ROOT, [STEP] * (num_anchors + 1), Outcome(0.0, False))
        grow(self.tree, _from_prompt, BudgetLedger(2), rng, self.draw)
        self.steps = 0

    def draw(self, tree: RolloutTree, request: RolloutRequest) -> list[tuple[list[Step], Outcome]]:
        anchor = len(tree.path(request.prefix))
        rest = [STEP] * (len(self.chances) - anchor)
        self.steps += len(rest) * request.num_rollouts
        won = self.rng.random(request.num_rollouts) < self.chances[anchor]
        return [(rest, Outcome(float(w), bool(w))) for w in won]


def _from_prompt(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
    yield from ask(ROOT, ledger.remaining, ledger)


def scan(leaf: int) -> Strategy:
    """Mean@K at every anchor; what the budget does not divide goes to the first ones."""

    def strategy(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
        path = tree.path(leaf)
        num_anchors, budget = len(path) - 1, ledger.remaining
        probes = []
        for m in range(num_anchors):
            share = budget // num_anchors + (m < budget % num_anchors)
            if share:
                leaves = yield from ask(path[m], share, ledger)
                probes.append(Probe(path[m], share, sum(tree.outcomes[i].correct for i in leaves)))
        last = max((path.index(probe.anchor) + 1 for probe in probes if probe.num_successes), default=0)
        tree.localizations.append(Localization(leaf, path[last], tuple(probes)))

    return strategy


def told(world: World) -> Strategy:
    """One suffix at a time where it tells most about the anchor, knowing all but the critical step."""

    def strategy(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
        path, chances = tree.path(world.leaf), world.recoverable[1:]
        posterior = world.prior / world.prior.sum()
        while ledger.remaining and posterior.max() < 0.95:
            recoverable = 1 - np.cumsum(posterior)[:-1]  # of anchors 1..K
            gains = entropy(recoverable * chances) - recoverable * entropy(chances)
            anchor = int(gains.argmax())
            (leaf,) = yield from ask(path[anchor], 1, ledger)
            if tree.outcomes[leaf].correct:
                posterior[: anchor + 1] = 0
            else:
                posterior[anchor + 1 :] *= 1 - chances[anchor]
            posterior /= posterior.sum()
        tree.localizations.append(Localization(world.leaf, path[int(posterior.argmax())], ()))

    return strategy


def entropy(p: np.ndarray) -> np.ndarray:
    """Of a coin, nats."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    coins: np.ndarray = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    return coins


def as_many_as_possible(world: World, budget: int) -> Strategy:
    """The paper's bisection with as many suffixes at each anchor as the budget allows."""
    num_suffixes = max(1, budget // math.ceil(math.log2(len(world.chances))))
    return localize(world.leaf, num_suffixes, num_suffixes)


LOCALIZERS: dict[str, Callable[[World, int], Strategy]] = {  # world, budget
    "rule": lambda world, budget: localize(world.leaf),
    "rule x": as_many_as_possible,
    "scan": lambda world, budget: scan(world.leaf),
    "posterior": lambda world, budget: localize_posterior(world.leaf, confidence=0.95),
    "told": lambda world, budget: told(world),
}


def measure(
    kind: str, anchors: int, success: float, budget: int, num: int, seeds: int
) -> list[dict[str, Any]]:
    """A row for every localizer; all of them are given the same trajectories."""
    rows = []
    for name, make in LOCALIZERS.items():
        hits, near, drawn, steps = np.zeros((4, seeds, num))
        for seed in range(seeds):
            for i in range(num):
                world = World(kind, anchors, success, np.random.default_rng([seed, i, anchors]))
                ledger = BudgetLedger(budget)
                grow(world.tree, make(world, budget), ledger, world.rng, world.draw)
                (found,) = world.tree.localizations
                # an unfinished bisection names nothing, which is a miss
                named = math.inf if found.critical is None else found.critical + 1
                hits[seed, i] = named == world.critical
                near[seed, i] = abs(named - world.critical) <= 1
                drawn[seed, i], steps[seed, i] = ledger.spent, world.steps
        rows.append(
            {
                "world": kind, "K": anchors, "s": success, "budget": budget, "localizer": name,
                "exact": hits.mean(), "spread": hits.mean(1).std(ddof=1), "by_seed": hits.mean(1).tolist(),
                "within_one": near.mean(), "drawn": drawn.mean(), "steps": steps.mean(),
            }
        )  # fmt: skip
    return rows


def gains_table(rows: list[dict[str, Any]]) -> str:
    """A line for every world, K and s: exact hits of each localizer, and what the posterior gains."""
    lines = [
        "| world | K | s | rule | rule x | scan | posterior | told | gain over rule | gain over rule x |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for i in range(0, len(rows), len(LOCALIZERS)):
        cells = {row["localizer"]: row for row in rows[i : i + len(LOCALIZERS)]}
        texts = [f"{cells[name]['exact']:.2f} ({cells[name]['drawn']:.1f})" for name in LOCALIZERS]
        for name in ("rule", "rule x"):
            gains = np.subtract(cells["posterior"]["by_seed"], cells[name]["by_seed"])
            texts.append(f"{gains.mean():+.2f} ± {gains.std(ddof=1):.2f}")
        first = rows[i]
        lines.append(f"| {first['world']} | {first['K']} | {first['s']} | {' | '.join(texts)} |")
    return "\n".join(lines)


def budgets_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| world | K | s | budget | localizer | exact | within one | suffixes drawn | steps sampled |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            "| {world} | {K} | {s} | {budget} | {localizer} | {exact:.2f} ± {spread:.2f} | {within_one:.2f} "
            "| {drawn:.1f} | {steps:.1f} |".format(**row)
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--searches", type=int, default=60, help="a seed and row")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=13)
    args = parser.parse_args()
    started = time.perf_counter()
    how = (args.searches, args.seeds)
    rows = [
        row
        for kind in ("flat", "chain")
        for anchors in (4, 8, 16)
        for success in (0.05, 0.1, 0.2, 0.4, 0.8)
        for row in measure(kind, anchors, success, args.budget, *how)
    ]
    curves = [
        row
        for kind, success in (("flat", 0.2), ("chain", 0.1))
        for budget in (4, 8, 13, 24, 48, 96)
        for row in measure(kind, 8, success, budget, *how)
    ]
    about = {
        "seconds": f"{time.perf_counter() - started:.0f}",
        "searches a row": f"{args.seeds} seeds x {args.searches}",
    }
    explained = (__doc__ or "").split("\n\n", 2)[2].rsplit(" Writes", 1)[0]
    text = (
        f"{explained}\n\n"
        f"## Exact hits with a budget of {args.budget} (in brackets: suffixes drawn)\n\n"
        f"{gains_table(rows)}\n\n"
        f"## Agreement as a function of the budget\n\n{budgets_table(curves)}"
    )
    numbers = {"searches": args.searches, "seeds": args.seeds, "rows": rows, "curves": curves}
    publish(args.out, "posterior", "A posterior over the critical step", numbers, text, **about)


if __name__ == "__main__":
    main()
