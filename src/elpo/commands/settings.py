"""Settings as they are written on the command line: a recipe, then KEY=VALUE."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elpo.config import Config

OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def require_overrides(items: Sequence[str], what: str) -> None:
    """
    Raises:
        ConfigError: one of `items` is not written key=value, as `what` ("a setting") is.
    """
    from elpo.recipes import ConfigError

    if wrong := [item for item in items if not OVERRIDE.match(item)]:
        raise ConfigError(f"{wrong[0]}: {what} is written key=value")


def load_settings(items: Sequence[str]) -> Config:
    """The configuration of an optional recipe, or run folder, followed by overrides."""
    from pathlib import Path

    from elpo.recipes import ConfigError, load_config
    from elpo.training.run_folder import RunFolder

    recipes = [item for item in items if not OVERRIDE.match(item)]
    overrides = [item for item in items if OVERRIDE.match(item)]
    if len(recipes) > 1:
        raise ConfigError(f"give one recipe, not {', '.join(recipes)}; a setting is written key=value")
    if not recipes:
        return load_config(None, overrides)
    path = Path(recipes[0])
    if not path.is_dir():
        return load_config(path, overrides)
    folder = RunFolder(path)
    folder.config()
    # The folder may have been moved since the run began.
    return load_config(folder.config_file, [f"run.dir={str(path)!r}", *overrides])
