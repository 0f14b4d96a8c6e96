"""Pass@K, Major@K and the price of an answer, of policies that were trained under one budget.

    python benchmarks/attempts.py runs/studies/algorithms cold elpo grpo

The last checkpoint of every seed of every variant of a study tries each test problem --samples times
(`elpo eval`; a second call continues). Writes attempts.json, attempts.md and, with two seeds or more,
attempts.png to --out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plots import Point, curves
from report import arguments, publish

from elpo.evaluation.runner import evaluate_run
from elpo.evaluation.summary import Summary, reported_ks
from elpo.recipes import load_config
from elpo.studies.results import interval
from elpo.training.checkpoint import Checkpoints
from elpo.training.run_folder import RunFolder

PRICES = {
    "calls a sample": ("tool/calls_mean", ".2f"),
    "failed calls": ("tool/failed_share", ".3f"),
    "tokens a sample": ("tokens/per_sample", ".1f"),
    "tokens a solved sample": ("tokens/per_solved", ".1f"),
}


def attempt(run: Path, problems: int, samples: int) -> Summary:
    """What the last policy of a run does."""
    checkpoint = Checkpoints(RunFolder(run).checkpoints).path("last")
    if checkpoint is None:
        raise SystemExit(f"{run} has no checkpoint; train it first")
    settings = [f"evaluation.num_problems={problems}", f"evaluation.samples_per_problem={samples}"]
    model = f"model.path={str(checkpoint / 'model')!r}"
    config = load_config(run / "config.yaml", [*settings, model])
    return evaluate_run(config, out=run / f"attempts-{samples}").summary


def table(found: Mapping[str, Sequence[Summary]], samples: int) -> str:
    """Markdown: mean over seeds and half of the 95 % interval."""
    ks = reported_ks(samples)
    columns = {f"pass@{k}": (f"pass@{k}", ".3f") for k in ks}
    columns |= {f"major@{k}": (f"major@{k}", ".3f") for k in ks[1:]} | PRICES
    lines = [f"| variant | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for variant, summaries in found.items():
        cells = [variant, str(len(summaries))]
        for name, form in columns.values():
            values = [one.estimates[name].value for one in summaries if name in one.estimates]
            if not values:  # nothing was solved, or nothing to vote on
                cells.append("-")
                continue
            mean, half = interval(values)
            cells.append(f"{mean:{form}} ± {half:{form}}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def calls_table(found: Mapping[str, Sequence[Summary]]) -> str:
    """Markdown: accuracy by number of calls, all seeds together; in brackets the share of samples."""
    everyone = [one for summaries in found.values() for one in summaries]
    counts = sorted({calls for one in everyone for calls in one.accuracy_by_calls})
    lines = [f"| variant | {' | '.join(map(str, counts))} |", "|---" * (len(counts) + 1) + "|"]
    for variant, summaries in found.items():
        total = sum(num for one in summaries for num, _ in one.accuracy_by_calls.values())
        cells = []
        for calls in counts:
            seen = [one.accuracy_by_calls[calls] for one in summaries if calls in one.accuracy_by_calls]
            num = sum(count for count, _ in seen)
            right = sum(count * share for count, share in seen)
            cells.append(f"{right / num:.2f} ({num / total:.2f})" if num else "")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> Point:
    """Mean and 95 % interval over seeds."""
    mean, half = interval(values)
    return mean, mean - half, mean + half


def plot(found: Mapping[str, Sequence[Summary]], samples: int, path: Path) -> None:
    """Pass@K and Major@K against K."""
    ks = reported_ks(samples)
    panels = {
        f"{measure.capitalize()}@K": {
            variant: [(k, spread([one.estimates[f"{measure}@{k}"].value for one in summaries])) for k in ks]
            for variant, summaries in found.items()
        }
        for measure in ("pass", "major")
    }
    curves(panels, "K", "test problems", path, ks)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("runs", type=Path, help="folder of a study's runs, named VARIANT-SEED")
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    args = parser.parse_args()
    found: dict[str, list[Summary]] = {}
    numbers: dict[str, Any] = {"problems": args.problems, "samples": args.samples, "rows": []}
    for variant in args.variants:
        for seed in args.seeds:
            summary = attempt(args.runs / f"{variant}-{seed}", args.problems, args.samples)
            found.setdefault(variant, []).append(summary)
            estimates = {name: estimate.value for name, estimate in summary.estimates.items()}
            numbers["rows"].append(
                {"variant": variant, "seed": seed, **estimates, "by_calls": summary.accuracy_by_calls}
            )
            print(variant, seed, estimates, flush=True)
    text = (
        f"{args.problems} test problems, {args.samples} samples each, the last policy of every seed; "
        f"± is half of the 95 % interval over seeds (Student's t).\n\n{table(found, args.samples)}\n\n"
        f"Share correct of the samples with so many tool calls (in brackets: share of samples):\n\n"
        f"{calls_table(found)}"
    )
    if len(args.seeds) > 1:
        plot(found, args.samples, args.out / "attempts.png")
        text += "\n\n![Pass@K and Major@K](attempts.png)"
    publish(args.out, "attempts", "Pass@K, Major@K and their price", numbers, text)


if __name__ == "__main__":
    main()
