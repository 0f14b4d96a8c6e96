"""How well do step scores order sibling branches? (Paper, Fig. 3, on the ledger task.)

    python benchmarks/ranking.py runs/compare/sparse/cold-0 runs/compare/dense/cold-0

For every run the policy of its last checkpoint grows a tree on each problem with every algorithm's strategy.
At each branching prefix the children are ordered by the algorithm's own advantage and by Mean@k, the success
of k more rollouts from the end of each child. "branches" leaves out the prompt itself, where all first steps
are siblings. Writes ranking.json and ranking.md to --out.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from plots import Point, bars
from report import arguments, publish

from elpo.algorithm_config import AlgorithmConfig
from elpo.algorithms.credit_rules import assign_credits
from elpo.evaluation.ranking import Siblings, ranked, ranking_quality, reference_budget
from elpo.recipes import load_config
from elpo.training.assembly import assemble, make_strategy
from elpo.training.checkpoint import Checkpoints
from elpo.training.run_folder import RunFolder
from elpo.tree import RolloutTree

ALGORITHMS = ("elpo", "elpo-no-bel", "aepo", "arpo")


def measure(run: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Two rows for each algorithm: all prefixes, and those after the prompt."""
    import torch

    checkpoint = Checkpoints(RunFolder(run).checkpoints).path("last")
    if checkpoint is None:
        raise SystemExit(f"{run} has no checkpoint; train it first")
    rows = []
    assembly = assemble(load_config(run / "config.yaml"), torch.device("cpu"), checkpoint / "model")
    try:
        assembly.model.eval()
        problems = assembly.task.problems("train", args.problems)
        for name in args.algorithms:
            algorithm = load_config(run / "config.yaml", [f"algorithm.name={name}"]).algorithm
            budget = algorithm.num_rollouts

            def score(tree: RolloutTree, algorithm: AlgorithmConfig = algorithm) -> np.ndarray:
                return assign_credits([tree], algorithm)[0].advantages

            found: list[Siblings] = []
            strategy = ranked(make_strategy(algorithm.strategy), score, budget, args.reference, found)
            total = reference_budget(budget, args.reference)
            started = time.perf_counter()
            _, counts = assembly.scheduler.grow(problems, strategy, total, args.seed)
            about = {"run": str(run), "algorithm": name, "rollouts": counts.rollouts}
            about["seconds"] = time.perf_counter() - started
            for prefixes, chosen in (("all", found), ("branches", [s for s in found if s.depth > 0])):
                quality = {key: asdict(value) for key, value in ranking_quality(chosen).items()}
                rows.append({**about, "prefixes": prefixes, **quality})
            print(rows[-1], flush=True)
    finally:
        assembly.close()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; intervals are 95 % bootstrap over problems."""
    lines = ["| policy | algorithm | prefixes | sets | pairwise accuracy | Kendall's tau-b |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        cells = ["/".join(Path(row["run"]).parts[-2:]), row["algorithm"], row["prefixes"]]
        cells.append(str(row["pairwise_accuracy"]["num_sets"]))
        cells += ["{value:.3f} ({low:.3f} to {high:.3f})".format(**row[key])
                  for key in ("pairwise_accuracy", "kendall_tau")]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Pairwise accuracy by policy and algorithm."""
    panels: dict[str, dict[str, dict[str, Point]]] = {"all": {}, "branches": {}}
    for row in rows:
        quality = row["pairwise_accuracy"]
        policy = panels[row["prefixes"]].setdefault(Path(row["run"]).name, {})
        policy[row["algorithm"]] = (quality["value"], quality["low"], quality["high"])
    titles = {"all": "all prefixes", "branches": "without the prompt"}
    bars({titles[key]: groups for key, groups in panels.items()}, "pairwise accuracy", path)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS))
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--reference", type=int, default=32, help="rollouts from each branch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [row for run in args.runs for row in measure(run, args)]
    plot(rows, args.out / "ranking.png")
    text = f"{table(rows)}\n\n![Pairwise accuracy](ranking.png)"
    publish(args.out, "ranking", "Ranking of sibling branches", {"rows": rows}, text)


if __name__ == "__main__":
    main()
