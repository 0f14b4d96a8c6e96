"""The console that a command's tables are printed to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def wide_console() -> Console:
    """As wide as the terminal, or, where the output goes elsewhere, wide enough for a table."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)
