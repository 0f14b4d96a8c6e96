"""`elpo eval`: measure success."""

from __future__ import annotations

import argparse
import sys

from elpo.commands.endpoint_options import add_endpoint_options, connection_of
from elpo.commands.settings import OVERRIDE, load_settings


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "eval",
        help="measure success",
        description="Measure success on test problems; the same command continues where it was stopped.",
    )
    parser.add_argument(
        "target", nargs="?", metavar="RUN_OR_MODEL", help="a run folder, a model folder or a hub name"
    )
    parser.add_argument("items", nargs="*", metavar="RECIPE | KEY=VALUE", help="settings of the evaluation")
    parser.add_argument("--out", metavar="DIR", help="folder of the evaluation (default: by its settings)")
    add_endpoint_options(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Evaluate, and print the summary."""
    from pathlib import Path

    from elpo.recipes import ConfigError, load_config
    from elpo.training.run_folder import RunFolder

    connection = connection_of(args)
    if connection is None and args.target is None:
        raise ConfigError("give a run, a model, or --endpoint and --model")
    folder = RunFolder(args.target or "")
    if connection is not None:  # all that is positional are settings
        config = load_settings([*filter(None, [args.target]), *args.items])
        run: Path | None = None
    elif folder.config_file.exists():
        if args.items and not OVERRIDE.match(args.items[0]):
            raise ConfigError(f"{args.target} has its own settings; give only key=value, not {args.items[0]}")
        config = load_config(folder.config_file, args.items)
        run = folder.path
    else:
        config = load_settings([*args.items, f"model.path={args.target!r}"])
        run = None

    from rich.console import Console

    from elpo.evaluation.runner import evaluate_run
    from elpo.training.progress import console_progress
    from elpo.viz.evaluation import render_summary

    out = None if args.out is None else Path(args.out)
    try:
        with console_progress(Console(stderr=True)) as progress:
            found = evaluate_run(config, run, out=out, progress=progress, connection=connection)
    except KeyboardInterrupt:
        print("continue with the same command", file=sys.stderr)
        raise
    Console().print(render_summary(found.summary), highlight=False)
    print(f"\ntrajectories and result.json: {found.folder}")
    if not found.num_sampled:
        print(
            "no sample is new: all are of an earlier call with these settings; if task, tool or data were "
            "edited since, give another folder with --out"
        )
