"""A folder that belongs to one set of settings: made by the first call, checked by every later one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, file)
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
