"""`elpo index`: make a search index."""

from __future__ import annotations

import argparse
import sys

MAX_BAD_ROWS_LISTED = 10


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "index", help="make a search index", description="Make an index for the search tool from a corpus."
    )
    parser.add_argument(
        "corpus",
        nargs="+",
        metavar="CORPUS",
        help=".jsonl or .json with id, title and text (or contents), or plain text, a passage a paragraph",
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="index file to write; an older is replaced"
    )
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Write the index and print its size."""
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from elpo.tools.search_backend import Passage
    from elpo.tools.search_corpus import BadRow, read_corpus
    from elpo.tools.search_index import write_index

    paths, out = [Path(name) for name in args.corpus], Path(args.out)
    bad: list[BadRow] = []

    def passages() -> Iterator[Passage]:
        for row in read_corpus(paths, lambda num_bytes: progress.advance(task, num_bytes)):
            if isinstance(row, Passage):
                yield row
            else:
                bad.append(row)
                if len(bad) <= MAX_BAD_ROWS_LISTED:
                    progress.console.print(f"left out: {row}", markup=False, highlight=False, soft_wrap=True)

    columns = (TextColumn("indexing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=sum(path.stat().st_size for path in paths))
        num_passages = write_index(passages(), out)
    if bad:
        unlisted = f" ({len(bad) - MAX_BAD_ROWS_LISTED} not listed)" if len(bad) > MAX_BAD_ROWS_LISTED else ""
        print(f"{len(bad)} rows were left out{unlisted}", file=sys.stderr)
    print(f"{out}: {num_passages} passages, {out.stat().st_size / 1e6:.1f} MB")
