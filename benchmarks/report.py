"""A benchmark's results on file: numbers for programs, a page for people, both with what made them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elpo.provenance import as_list, provenance


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
