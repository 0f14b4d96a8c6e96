"""What is one step worth? Failures edited at one step and resampled (paper, Fig. 1), and self-correction.

    python benchmarks/recovery.py runs/compare/sparse/cold-0 runs/compare/dense/cold-0

For every run the policy of its last checkpoint tries each test problem k times. Of the problems that always
failed (Pass@k = 0), the first failed trajectory is taken, one of its steps is replaced by the right one, and
k completions are drawn from there; it is recovered if one of them is correct. Which step is right, wrong or
irrecoverable is known exactly on the ledger: an edit of the second or third irrecoverable step leaves the
first one in ink, so that its recovery is 0 by construction. The row "no edit" draws k more from the prompt.

Self-correction: of the trajectories whose n-th step is wrong, the share that still ends right, with the
tool's error text and with nothing but "Error". Writes recovery.json and recovery.md to --out.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from localization import share, wilson
from plots import bars
from report import arguments, publish

from elpo.algorithms.strategies import independent
from elpo.evaluation.recovery import Edit, edited, resample, self_correction, without_error_text
from elpo.recipes import load_config
from elpo.tasks.ledger_edits import erroneous_steps, irrecoverable_steps, right_turn
from elpo.training.assembly import Assembly, assemble
from elpo.training.checkpoint import Checkpoints
from elpo.training.run_folder import RunFolder
from elpo.tree import RolloutTree
from elpo.types import Problem, Step, StopReason

ORDINALS = ("first", "second", "third")


def edits_of(problem: Problem, steps: Sequence[Step], stop: StopReason, seed: int) -> dict[str, int]:
    """Kind of edit -> the step it replaces, of a failed trajectory. A kind that does not occur is missing."""
    errors = erroneous_steps(problem, steps)
    chosen = dict(zip((f"{word} irrecoverable" for word in ORDINALS),
                      irrecoverable_steps(problem, steps, stop), strict=False))  # fmt: skip
    if errors:
        chosen["random error"] = random.Random(f"{seed}:{problem.id}").choice(errors)
        chosen["first error"] = errors[0]
    return chosen


def recovery(
    assembly: Assembly, trees: Sequence[RolloutTree], num_samples: int, seed: int
) -> list[dict[str, Any]]:
    """A row for each kind of edit."""
    edits: dict[str, list[Edit]] = {}
    for tree in trees:
        if not tree.outcomes or any(outcome.correct for outcome in tree.outcomes.values()):
            continue
        leaf = tree.leaves[0]
        steps = [tree.nodes[node].step for node in tree.path(leaf)]
        edits.setdefault("no edit", []).append(Edit(tree.problem, ()))
        for kind, number in edits_of(tree.problem, steps, tree.outcomes[leaf].stop, seed).items():
            message = right_turn(tree.problem, steps[: number - 1])
            edits.setdefault(kind, []).append(edited(assembly.dialogue, tree.problem, steps, number, message))
    rows = []
    for kind in ("no edit", "random error", "first error", *(f"{word} irrecoverable" for word in ORDINALS)):
        grown = resample(assembly.scheduler, edits.get(kind, []), num_samples, seed + 1)
        correct = [[outcome.correct for outcome in tree.outcomes.values()] for tree in grown]
        recovered, num = sum(map(any, correct)), len(correct)
        rows.append(
            {
                "edit": kind,
                "problems": num,
                "recovered": share(recovered, num),
                "interval": wilson(recovered, num),
                "success": float(np.mean([np.mean(c) for c in correct if c])) if num else float("nan"),
            }
        )
    return rows


def measure(run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Recovery and self-correction of one policy."""
    import torch

    checkpoint = Checkpoints(RunFolder(run).checkpoints).path("last")
    if checkpoint is None:
        raise SystemExit(f"{run} has no checkpoint; train it first")
    assembly = assemble(load_config(run / "config.yaml"), torch.device("cpu"), checkpoint / "model")
    try:
        assembly.model.eval()
        problems = assembly.task.problems("test", args.problems)
        scheduler = assembly.scheduler
        trees, _ = scheduler.grow(problems, independent(), args.samples, args.seed)
        terse = replace(scheduler, tools=without_error_text(assembly.tools))
        silent, _ = terse.grow(problems, independent(), args.samples, args.seed)
        correct = [outcome.correct for tree in trees for outcome in tree.outcomes.values()]
        return {
            "run": str(run),
            "success": float(np.mean(correct)),
            "recovery": recovery(assembly, trees, args.samples, args.seed),
            "self_correction": self_correction(trees, erroneous_steps),
            "self_correction_without_text": self_correction(silent, erroneous_steps),
        }
    finally:
        assembly.close()


def report(results: list[dict[str, Any]]) -> str:
    """Markdown: two tables."""
    lines = ["| policy | success | edit | problems | recovered (95 % interval) | success after |"]
    lines.append("|---|---|---|---|---|---|")
    for found in results:
        policy = "/".join(Path(found["run"]).parts[-2:])
        for row in found["recovery"]:
            low, high = row["interval"]
            lines.append(
                f"| {policy} | {found['success']:.3f} | {row['edit']} | {row['problems']} "
                f"| {row['recovered']:.3f} ({low:.2f}-{high:.2f}) | {row['success']:.3f} |"
            )
    lines += [
        "",
        "| policy | wrong step | trajectories | end right | trajectories without text | end right |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for found in results:
        policy = "/".join(Path(found["run"]).parts[-2:])
        told, silent = found["self_correction"], found["self_correction_without_text"]
        for number in sorted({*told, *silent}):
            cells = [f"{n} | {p:.3f}" for n, p in (told.get(number, (0, float("nan"))),
                                                   silent.get(number, (0, float("nan"))))]  # fmt: skip
            lines.append(f"| {policy} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Recovered problems by policy and edit."""
    groups = {
        Path(found["run"]).name: {
            row["edit"]: (row["recovered"], *row["interval"]) for row in found["recovery"]
        }
        for found in results
    }
    bars({"one step edited": groups}, "problems recovered", path)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = [measure(run, args) for run in args.runs]
    plot(results, args.out / "recovery.png")
    text = f"{report(results)}\n\n![Recovered after an edit](recovery.png)"
    publish(args.out, "recovery", "Recovery and self-correction", {"results": results}, text)


if __name__ == "__main__":
    main()
