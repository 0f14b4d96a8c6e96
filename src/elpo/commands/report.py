"""`elpo report`: a run's page as one file."""

from __future__ import annotations

import argparse


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "report",
        help="write a run's report page",
        description="Write one HTML file with curves, budget, search, tools and trees of a run. Runs that "
        "differ only in their seed become one curve with its spread.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; the first names the file")
    parser.add_argument("--out", metavar="HTML", help="file to write (default: report.html of the first run)")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Write the page and print its path."""
    from elpo.viz.report import write_report

    print(write_report(args.runs, args.out))
