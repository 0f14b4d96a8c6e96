"""A folder that belongs to one set of settings: made by the first call, checked by every later one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def claim(folder: Path, settings: Mapping[str, Any], what: str) -> None:
    """Write `folder/settings.json`, or check that the one there says the same.

    Args:
        what: the folder holds, for messages: "evaluation".

    Raises:
        ValueError: the folder holds something else, or was made with other settings; the message names them.
    """
    file = folder / "settings.json"
    if not file.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} holds no {what}; choose another folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
        return
    try:
        here = json.loads(file.read_text(encoding="utf-8"))
        changed = sorted(key for key in {*here, *settings} if here.get(key) != settings.get(key))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); choose another folder with --out") from error
    if changed:
        raise ValueError(
            f"the {what} in {folder} was made with other settings ({', '.join(changed)}); "
            "choose another folder with --out"
        )


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is either the old one or the new one, never a part."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


def digest(settings: Mapping[str, Any]) -> str:
    """Eight characters that tell settings apart, for the name of their folder."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def fingerprints(files: Iterable[Path]) -> list[list[str | int]]:
    """Names, sizes and times by which files of weights are known again without being read."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
