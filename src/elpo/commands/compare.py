"""`elpo compare`: variants of a recipe, seeds and intervals."""

from __future__ import annotations

import argparse
import sys

from elpo.commands.settings import require_overrides


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "compare",
        help="compare algorithms or settings",
        description="Train variants of a recipe with several seeds, from the same cold starts and with the "
        "same budget, and write table and curves. The same command continues where it was stopped.",
    )
    parser.add_argument("study", metavar="STUDY | RECIPE", help="a study file, or a recipe")
    parser.add_argument("items", nargs="*", metavar="KEY=VALUE", help="settings of every run")
    parser.add_argument("--algorithms", nargs="+", metavar="NAME", help="instead of the study's variants")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="instead of the study's")
    parser.add_argument("--target", type=float, help="held-out success whose price is reported")
    parser.add_argument("--runs", metavar="DIR", help="where the runs go (default: runs/studies/NAME)")
    parser.add_argument("--jobs", type=int, help="runs side by side (default: a core each; 1 with a GPU)")
    parser.add_argument("--report-only", action="store_true", help="run nothing; report what is finished")
    parser.add_argument("--out", metavar="DIR", help="folder of the report (default: that of the runs)")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Run what is not finished, then report."""
    from pathlib import Path

    from elpo.studies.study import load_study

    require_overrides(args.items, "a setting")
    changes = {
        key: getattr(args, key) for key in ("seeds", "target", "runs") if getattr(args, key) is not None
    }
    if args.algorithms:
        changes |= {"algorithms": args.algorithms, "variants": {}}
    study = load_study(args.study, changes, args.items)
    out = Path(args.out) if args.out else study.runs

    from rich.console import Console

    from elpo.provenance import provenance
    from elpo.studies.results import read_results
    from elpo.studies.running import default_jobs, run_study
    from elpo.training.progress import console_progress
    from elpo.viz.study import curves, report

    if not args.report_only:
        try:
            with console_progress(Console(stderr=True)) as progress:
                run_study(study, args.jobs or default_jobs(study), progress)
        except KeyboardInterrupt:
            print("continue with the same command", file=sys.stderr)
            raise
    results = read_results(study)
    text = report(study, results, provenance())
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{study.name}.md").write_text(f"{text}\n![curves]({study.name}.png)\n", encoding="utf-8")
    curves(study, results, out / f"{study.name}.png")
    print(text)
    print(f"report: {out / study.name}.md")
