"""What a result was made with, to stand beside it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from elpo import __version__


def provenance() -> dict[str, str]:
    """Command, commit (or version, outside of a checkout), date and machine."""
    program = Path(sys.argv[0])
    is_script = program.suffix == ".py" and program.parent.name != "elpo"
    called = ["python", str(Path(program.parent.name, program.name))] if is_script else ["elpo"]
    return {
        "command": " ".join([*called, *sys.argv[1:]]),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}",
    }


def as_list(about: Mapping[str, object]) -> str:
    """The same as a list in Markdown."""
    return "\n".join(f"- {key}: {value}" for key, value in about.items())


@cache
def _commit() -> str:
    """As it was at first: a program's own results must not make it look changed."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"elpo {__version__}"
    inside = described.returncode == 0 and (here.parent.parent / ".git").exists()
    return described.stdout.strip() if inside else f"elpo {__version__}"
