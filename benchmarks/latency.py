"""How long a step's rollouts take where tools are slow now and then: a simulation, without a model.

    python benchmarks/latency.py                 about a minute on one core

The project's own strategies grow trees, 16 rollouts each, in simulated time: a turn takes one second of
decoding, a tool call a time from a Pareto distribution with a mean of one second, so that only its tail
changes (index 3: light; 1.5: one call in three hundred takes longer than fifteen seconds). A rollout keeps
its slot from its first turn to its last, as in our engine. The tree with most of its budget left goes first.
`slots for each tree` says how many rollouts may be alive for each problem of the step; `deadline` cuts a
call, whose answer is then an error that the rollout goes on with. All numbers are means over seeds. Writes
latency.json and latency.md to --out.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from information import World
from report import arguments, publish

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.strategies import RolloutRequest, Search, Strategy, bel, independent
from elpo.tree import RolloutTree
from elpo.types import Problem

STRATEGIES: dict[str, Strategy] = {"GRPO": independent(), "ELPO": bel()}
NUM_TREES, NUM_ROLLOUTS, NUM_STEPS, SUCCESS = 64, 16, 8, 0.2
TAILS = (3.0, 2.0, 1.5)
SLOTS = (1, 2, 4)
DEADLINES = (np.inf, 10.0)


@dataclass
class Growth:
    """A tree and the request it waits for."""

    tree: RolloutTree
    ledger: BudgetLedger
    search: Search
    request: RolloutRequest | None = None
    awaited: int = 0


@dataclass
class Service:
    """Tools and decoding, in simulated seconds."""

    tail: float
    deadline: float
    rng: np.random.Generator
    cut: int = 0
    calls: int = 0

    def rollout(self, num_steps: int) -> tuple[float, float]:
        """Seconds that a rollout of `num_steps` turns takes, and those of them it decodes."""
        scale = (self.tail - 1) / self.tail  # of a mean of one second
        waits = scale * (1 + self.rng.pareto(self.tail, num_steps - 1))
        self.calls += len(waits)
        self.cut += int((waits > self.deadline).sum())
        return num_steps + float(np.minimum(waits, self.deadline).sum()), float(num_steps)


@dataclass
class Simulation:
    """One step's rollouts."""

    strategy: Strategy
    slots: int
    service: Service
    world: World
    now: float = 0.0
    decoded: float = 0.0
    alive: int = 0
    _order: Any = field(default_factory=count)
    _ready: list[tuple[int, int, Growth]] = field(default_factory=list)
    _events: list[tuple[float, int, Growth]] = field(default_factory=list)

    def run(self, seed: int) -> float:
        """Seconds until the last tree is finished."""
        for i in range(NUM_TREES):
            tree, ledger = (
                RolloutTree(Problem(str(i), (), ""), np.zeros(0, np.int64)),
                BudgetLedger(NUM_ROLLOUTS),
            )
            growth = Growth(tree, ledger, self.strategy(tree, ledger, np.random.default_rng([seed, i])))
            self._advance(growth, None)
        while self._events or self._ready:
            while self._ready and self.alive < self.slots:
                *_, growth = heapq.heappop(self._ready)
                assert growth.request is not None
                depth = len(growth.tree.path(growth.request.prefix))
                seconds, decoded = self.service.rollout(NUM_STEPS + 1 - depth)
                self.decoded += decoded
                self.alive += 1
                heapq.heappush(self._events, (self.now + seconds, next(self._order), growth))
            self.now, _, growth = heapq.heappop(self._events)
            self.alive -= 1
            growth.awaited -= 1
            if growth.awaited == 0:
                assert growth.request is not None
                drawn = self.world.draw(growth.tree, growth.request)
                self._advance(growth, [growth.tree.add(growth.request.prefix, *rollout) for rollout in drawn])
        return self.now

    def _advance(self, growth: Growth, leaves: list[int] | None) -> None:
        try:
            request = next(growth.search) if leaves is None else growth.search.send(leaves)
        except StopIteration:
            return
        growth.ledger.spend(request.num_rollouts)
        growth.request, growth.awaited = request, request.num_rollouts
        for _ in range(request.num_rollouts):
            heapq.heappush(self._ready, (-growth.ledger.remaining, next(self._order), growth))


def measure(tail: float, slots: int, deadline: float, seeds: int) -> dict[str, Any]:
    """A row of the table."""
    seconds: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    busy: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    cut = calls = 0
    for seed in range(seeds):
        for name, strategy in STRATEGIES.items():
            service = Service(tail, deadline, np.random.default_rng([seed, 1]))
            simulation = Simulation(strategy, slots * NUM_TREES, service, World(NUM_STEPS, SUCCESS, seed))
            seconds[name].append(simulation.run(seed))
            busy[name].append(simulation.decoded / (simulation.now * slots * NUM_TREES))
            cut, calls = cut + service.cut, calls + service.calls
    ratios = [elpo / grpo for elpo, grpo in zip(seconds["ELPO"], seconds["GRPO"], strict=True)]
    return {
        "tail": tail,
        "slots": slots,
        "deadline": None if np.isinf(deadline) else deadline,
        **{name.lower(): float(np.mean(values)) for name, values in seconds.items()},
        **{f"{name.lower()}_busy": float(np.mean(values)) for name, values in busy.items()},
        "ratio": float(np.mean(ratios)),
        "ratio_deviation": float(np.std(ratios, ddof=1)),
        "cut": cut / calls,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| tail index | deadline, s | slots for each tree | GRPO, s | ELPO, s | ELPO / GRPO "
        "| slots decoding, GRPO | ELPO | calls cut |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['tail']:g} | {row['deadline'] or 'none'} | {row['slots']} | {row['grpo']:.0f} "
            f"| {row['elpo']:.0f} | {row['ratio']:.2f} ± {row['ratio_deviation']:.2f} "
            f"| {row['grpo_busy']:.2f} | {row['elpo_busy']:.2f} | {100 * row['cut']:.2f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    rows = [
        measure(tail, slots, deadline, args.seeds)
        for tail in TAILS
        for deadline in DEADLINES
        for slots in SLOTS
    ]
    text = (
        f"{NUM_TREES} trees of {NUM_ROLLOUTS} rollouts, {NUM_STEPS} tool calls each, success {SUCCESS}; "
        f"mean ± standard deviation over {args.seeds} seeds.\n\n{table(rows)}"
    )
    publish(args.out, "latency", "The search under slow tools, simulated", {"rows": rows}, text)


if __name__ == "__main__":
    main()
