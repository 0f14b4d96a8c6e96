"""A benchmark's arguments, and its results on file: numbers for programs and a page for people."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elpo.provenance import as_list, provenance


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the script's own text, and --out, the folder of its results: this one."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    return parser


def publish(out: Path, name: str, title: str, numbers: Mapping[str, Any], text: str, **about: object) -> None:
    """Write NAME.json and NAME.md to the folder `out`, and print the text.

    Args:
        numbers: what was measured, for the JSON file.
        text: Markdown, below the title.
        about: what to say beside command, commit, date and machine.
    """
    made = {**provenance(), **about}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps({**made, **numbers}, indent=1) + "\n")
    (out / f"{name}.md").write_text(f"# {title}\n\n{as_list(made)}\n\n{text.strip()}\n")
    print(text)
