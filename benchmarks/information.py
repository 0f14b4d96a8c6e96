"""What a tree of 16 rollouts can teach, with every source of noise but sampling removed.

    python benchmarks/information.py

A world without a model: a trajectory has K steps, each right with probability p^(1/K), and succeeds if all
are. The library's own strategies and credit rules grow and judge trees in it. Reported per tree:

- success    share of the rollouts that succeed
- signal     share of the trees with both successes and failures; the others give no gradient
- decisions  steps sampled, relative to independent rollouts
- SNR        mean / standard deviation over trees of the gradient of Eq. 1 with respect to the log-odds of a
             right step, averaged over the K steps. So many times more trees are needed for the same
             certainty of the update: (SNR of grpo / SNR)^2, the column "rollouts for the same".

Writes information.json and information.md to --out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from report import arguments, publish

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.credit import assign_credit
from elpo.algorithms.frontier import frontier
from elpo.algorithms.posterior import posterior
from elpo.algorithms.strategies import RolloutRequest, Strategy, bel, grow, independent, random_prefix
from elpo.tree import RolloutTree
from elpo.types import Outcome, Problem, Step, ToolResult, ToolStatus

NUM_ROLLOUTS = 16
RIGHT, WRONG = 1, 0  # the one token of a step

ROWS: dict[str, tuple[Strategy, float]] = {  # strategy, branch weight
    "grpo": (independent(), 0.0),
    "elpo": (bel(), 0.5),
    "elpo-no-branch": (bel(), 0.0),
    "elpo-no-trajectory": (bel(), 1.0),
    "elpo-no-bel": (random_prefix(), 0.5),
    "elpo-frontier": (frontier(), 0.5),
    "elpo-posterior": (posterior(), 0.5),
}


class World:
    """K steps, each right with the same probability; success is all of them right."""

    def __init__(self, num_steps: int, success: float, seed: int) -> None:
        self.num_steps = num_steps
        self.right = success ** (1 / num_steps)
        self._rng = np.random.default_rng(seed)
        self._entropy = -sum(q * np.log(q) for q in (self.right, 1 - self.right))

    def draw(self, tree: RolloutTree, request: RolloutRequest) -> list[tuple[list[Step], Outcome]]:
        """Continue a prefix to the end, as often as asked for."""
        path = [tree.nodes[node].step for node in tree.path(request.prefix)]
        rollouts = []
        for _ in range(request.num_rollouts):
            right = self._rng.random(self.num_steps - len(path)) < self.right
            steps = [self._step(RIGHT if r else WRONG, tool=True) for r in right]
            correct = all(step.token_ids[0] == RIGHT for step in (*path, *steps))
            rollouts.append(([*steps, self._step(RIGHT, tool=False)], Outcome(float(correct), correct)))
        return rollouts

    def gradient(self, tree: RolloutTree, advantages: np.ndarray) -> np.ndarray:
        """Of the objective with respect to the log-odds of a right step, for each of the K steps."""
        gradient = np.zeros(self.num_steps)
        for node, leaves in enumerate(tree.leaves_below()):
            step = tree.nodes[node].step
            if step.is_tool_step:
                score = step.token_ids[0] - self.right
                gradient[len(tree.path(node)) - 1] += advantages[node] * score * len(leaves)
        return gradient

    def _step(self, token: int, tool: bool) -> Step:
        entropy = self._entropy + 0.01 * self._rng.normal()  # tells trajectories apart, says nothing
        return Step(
            token_ids=np.array([token]),
            sampled=np.array([True]),
            logprobs=np.zeros(1, np.float32),
            entropies=np.array([entropy], np.float32),
            tool_result=ToolResult(ToolStatus.OK, "") if tool else None,
        )


def measure(name: str, num_steps: int, success: float, num_trees: int, seed: int) -> dict[str, float]:
    """Means over `num_trees` trees of one row of the table."""
    strategy, branch_weight = ROWS[name]
    world = World(num_steps, success, seed)
    gradients = np.zeros((num_trees, num_steps))
    signals, successes, decisions = [], [], 0
    for i in range(num_trees):
        tree = RolloutTree(Problem("p", (), ""), np.zeros(0, np.int64))
        grow(tree, strategy, BudgetLedger(NUM_ROLLOUTS), np.random.default_rng([seed, i]), world.draw)
        gradients[i] = world.gradient(tree, assign_credit(tree, branch_weight=branch_weight).advantages)
        correct = [outcome.correct for outcome in tree.outcomes.values()]
        signals.append(any(correct) and not all(correct))
        successes += correct
        decisions += len(tree.nodes) - NUM_ROLLOUTS
    snr = gradients.mean(0) / gradients.std(0, ddof=1)
    return {
        "success": float(np.mean(successes)),
        "signal": float(np.mean(signals)),
        "decisions": decisions / (num_trees * NUM_ROLLOUTS * num_steps),
        "snr": float(snr.mean()),
    }


def table(rows: Sequence[dict[str, float | int | str]]) -> str:
    """Markdown."""
    lines = [
        "| steps | success of a rollout | algorithm | success | signal | decisions | SNR "
        "| rollouts for the same |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            "| {num_steps} | {p} | {name} | {success:.3f} | {signal:.3f} | {decisions:.2f} | {snr:.3f} "
            "| {price:.2f} |".format(**row)
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trees", type=int, default=2000)
    parser.add_argument("--steps", nargs="+", type=int, default=[6, 12])
    parser.add_argument("--success", nargs="+", type=float, default=[0.01, 0.03, 0.1, 0.3])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows: list[dict[str, float | int | str]] = []
    started = time.perf_counter()
    for num_steps in args.steps:
        for p in args.success:
            cells = {name: measure(name, num_steps, p, args.trees, args.seed) for name in ROWS}
            for name, cell in cells.items():
                price = (cells["grpo"]["snr"] / cell["snr"]) ** 2
                rows.append({"num_steps": num_steps, "p": p, "name": name, **cell, "price": price})
    seconds = f"{time.perf_counter() - started:.0f}"
    explained = (__doc__ or "").split("\n\n", 2)[2].rsplit("\n\n", 1)[0]
    text, numbers = f"{explained}\n\n{table(rows)}", {"trees": args.trees, "rows": rows}
    about = {"seconds": seconds, "trees a row": args.trees}
    publish(args.out, "information", "What a tree can teach", numbers, text, **about)


if __name__ == "__main__":
    main()
