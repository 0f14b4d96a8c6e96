"""`elpo plot`: learning curves and measured results as pictures."""

from __future__ import annotations

import argparse


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "plot",
        help="draw learning curves",
        description="Draw the learning curves of one or more runs, or what was measured: result.json of elpo "
        "eval, recovery.json, ranking.json.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN | FILE.json", help="run folders, or files of results")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=".png, .svg or .pdf to write (default: plots/learning_curves.png of the first run, or the first "
        "file's name with .png)",
    )
    parser.add_argument(
        "--panels", metavar="DIR", help="also write each panel by itself into this folder, as .png and .svg"
    )
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Draw, and print the files written."""
    from elpo.training.run_folder import RunFolder
    from elpo.viz.plots import learning_curves, single_panels

    if all(name.endswith(".json") for name in args.runs):
        from elpo.viz.results import plot_results

        print(plot_results(args.runs, args.out or f"{args.runs[0].removesuffix('.json')}.png"))
        return
    print(learning_curves(args.runs, args.out or RunFolder(args.runs[0]).plots / "learning_curves.png"))
    if args.panels is not None:
        print(*single_panels(args.runs, args.panels), sep="\n")
