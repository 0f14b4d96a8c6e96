"""How often the search names the step that the oracle knows to be the first irrecoverable one.

    python benchmarks/localization.py runs/compare/sparse/cold-0 runs/compare/dense/cold-0 runs/tiny

For every run the policy of its last checkpoint draws trajectories on test problems; of each problem the first
failed one is searched with more and more suffixes per anchor, always the same trajectory. The ledger task's
oracle is exact, so a miss is the search's: an anchor is called irrecoverable though it is not when no suffix
happens to succeed ("early"), and nothing can make it too late but a wrong monotonicity ("late").

Where there is no oracle the reference is a scan: Mean@k after every step, and the first step after which it
is zero (paper, App. E). It is measured too, against the oracle, and every search against it.
Writes NAME.json and NAME.md to --out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from plots import Point, curves
from report import arguments, publish

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.posterior import localize_posterior, posterior
from elpo.algorithms.strategies import RolloutRequest, Search, Strategy, bel, localize
from elpo.recipes import load_config
from elpo.tasks.ledger import first_irrecoverable_step
from elpo.training.assembly import assemble
from elpo.training.checkpoint import Checkpoints
from elpo.training.run_folder import RunFolder
from elpo.tree import ROOT, RolloutTree
from elpo.types import Localization, Probe

SUFFIXES = ((1, 3), (3, 3), (6, 6))
"""(X_min, X_max); (1, 3) with the entropy rule is the paper's."""
CANDIDATES = 4
TRAINING = 16  # rollouts of a tree, as in training
BUDGET = 200  # never binds: 4 candidates and 6 suffixes at each of at most 4 anchors
POSTERIOR = (5, 8, 15)
"""Suffixes of a posterior search: about what each of `SUFFIXES` spends."""
SCAN = 16
"""Suffixes of the exhaustive scan after every step."""


def search_first_failure(make: Callable[[int], Strategy]) -> Strategy:
    """Draw some trajectories and search the first that failed; nothing if all succeeded."""

    def strategy(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
        leaves = yield RolloutRequest(ROOT, CANDIDATES)
        failed = [leaf for leaf in leaves if not tree.outcomes[leaf].correct and len(tree.path(leaf)) > 1]
        if failed:
            yield from make(failed[0])(tree, ledger, rng)

    return strategy


def scan(leaf: int) -> Strategy:
    """Suffixes from every step but the last; critical is the first step after which none succeeded."""

    def search(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
        path = tree.path(leaf)
        probes = []
        for node in path[:-1]:
            leaves = yield RolloutRequest(node, SCAN)
            probes.append(Probe(node, len(leaves), sum(tree.outcomes[one].correct for one in leaves)))
        lost = [probe.anchor for probe in probes if not probe.num_successes]
        tree.localizations.append(Localization(leaf, (lost or path[-1:])[0], tuple(probes)))

    return search


@dataclass(frozen=True)
class Found:
    """A finished search."""

    problem: str
    named: int  # the step, from 1
    truth: int
    suffixes: int
    tokens: int  # sampled in them


def finished(trees: list[RolloutTree]) -> list[Found]:
    """Every finished search of the trees."""
    searches = []
    for tree in trees:
        for found in tree.localizations:
            if found.critical is None:
                continue
            path = tree.path(found.leaf)
            steps = [tree.nodes[node].step for node in path]
            truth = first_irrecoverable_step(tree.problem, steps, tree.outcomes[found.leaf].stop)
            assert truth is not None, "a failed trajectory has an irrecoverable step"
            drawn = sum(probe.num_rollouts for probe in found.probes)
            first = tree.leaves[:CANDIDATES][-1]  # what comes after was drawn by searches
            tokens = sum(int(node.step.sampled.sum()) for node in tree.nodes[first + 1 :])
            searches.append(Found(tree.problem.id, path.index(found.critical) + 1, truth, drawn, tokens))
    return searches


def wilson(hits: int, num: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if not num:
        return float("nan"), float("nan")
    z, p = 1.96, hits / num
    center = (p + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(p * (1 - p) / num + z * z / (4 * num * num))
    return max(0.0, center - half), min(1.0, center + half)


def measure(run: Path, num_problems: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row for every number of suffixes, and one for BEL as training runs it."""
    import torch

    config = load_config(run / "config.yaml")
    checkpoint = Checkpoints(RunFolder(run).checkpoints).path("last")
    assert checkpoint is not None, f"{run} has no checkpoint"
    assembly = assemble(config, torch.device("cpu"), checkpoint / "model")
    try:
        assembly.model.eval()
        problems = assembly.task.problems("test", num_problems)
        plans = [
            (
                f"{low}" if low == high else f"{low}-{high}",
                search_first_failure(partial(localize, min_suffixes=low, max_suffixes=high)),
                BUDGET,
            )
            for low, high in SUFFIXES
        ]
        for informed in (False, True):
            name = "posterior" if informed else "posterior, entropies unused"
            plans += [
                (
                    f"{name}, {num} in all",
                    search_first_failure(partial(localize_posterior, confidence=0.95, informed=informed)),
                    CANDIDATES + num,
                )
                for num in POSTERIOR
            ]
        trees_of_training = (("BEL", bel()), ("posterior BEL", posterior()))
        plans += [(f"{name}, {TRAINING} rollouts", search, TRAINING) for name, search in trees_of_training]
        by_scan: dict[str, int] = {}
        plans.insert(0, (f"scan, {SCAN} after every step", search_first_failure(scan), BUDGET * SCAN))
        for name, strategy, budget in plans:
            started = time.perf_counter()
            trees, _ = assembly.scheduler.grow(problems, strategy, budget, seed)
            searches = finished(trees)
            by_scan = by_scan or {search.problem: search.named for search in searches}
            alone = budget != TRAINING  # one search of the trajectory that was scanned
            of_scan = [search.named - by_scan[search.problem] for search in searches if alone]
            errors = [search.named - search.truth for search in searches]
            # the policy's own success: first draws from the prompt only, suffixes are not independent
            firsts = [tree.outcomes[leaf].correct for tree in trees for leaf in tree.leaves[:3]]
            hits = sum(error == 0 for error in errors)
            num = len(errors)
            row = {
                "run": str(run),
                "suffixes": name,
                "success": float(np.mean(firsts)),
                "searches": num,
                "exact": share(hits, num),
                "interval": wilson(hits, num),
                "within_one": share(sum(abs(error) <= 1 for error in errors), num),
                "early": share(sum(error < 0 for error in errors), num),
                "late": share(sum(error > 0 for error in errors), num),
                "as_scan": share(of_scan.count(0), num) if alone else None,
                "near_scan": share(sum(abs(error) <= 1 for error in of_scan), num) if alone else None,
                "suffixes_drawn": share(sum(search.suffixes for search in searches), num),
                "tokens": share(sum(search.tokens for search in searches), num) if alone else None,
                "seconds": time.perf_counter() - started,
            }
            print(row, flush=True)
            yield row
    finally:
        assembly.close()


def share(count: int, of: int) -> float:
    """`count / of`; NaN of nothing."""
    return count / of if of else float("nan")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="localization", help="of the files written")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for run in args.runs:
        for row in measure(run, args.problems, args.seed):
            rows.append(row)
            title = "Localization against the exact oracle"  # after every row: nothing computed is lost
            publish(args.out, args.name, title, {"rows": rows}, table(rows))
    plot(rows, args.out / f"{args.name}.png")
    text = f"{table(rows)}\n\n![Exact hits against suffixes]({args.name}.png)"
    publish(args.out, args.name, title, {"rows": rows}, text)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| policy | success | suffixes per anchor | searches | exact (95 % interval) | within one | early "
        "| late | as the scan | within one of the scan | suffixes per search | tokens per search |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        policy = "/".join(Path(row["run"]).parts[-2:])
        lines.append(
            f"| {policy} | {row['success']:.3f} | {row['suffixes']} | {row['searches']} "
            f"| {row['exact']:.3f} ({low:.2f}-{high:.2f}) | {row['within_one']:.3f} | {row['early']:.3f} "
            f"| {row['late']:.3f} | {cell(row['as_scan'], '.3f')} | {cell(row['near_scan'], '.3f')} "
            f"| {row['suffixes_drawn']:.1f} | {cell(row['tokens'], '.0f')} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Exact hits against suffixes drawn, a panel for each policy."""
    kinds = {
        "scan": "Mean@k scan",
        "posterior, entropies": "posterior, no entropies",
        "posterior,": "posterior",
    }
    panels: dict[str, dict[str, list[tuple[float, Point]]]] = {}
    for row in rows:
        if row["as_scan"] is None:  # many searches of a tree
            continue
        kind = next((kind for key, kind in kinds.items() if row["suffixes"].startswith(key)), "bisection")
        curve = panels.setdefault(Path(row["run"]).name, {}).setdefault(kind, [])
        curve.append((row["suffixes_drawn"], (row["exact"], *row["interval"])))
    curves(panels, "suffixes drawn per search", "exact hits", path, (2, 4, 8, 16, 32, 64, 128))


def cell(value: float | None, form: str) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    main()
