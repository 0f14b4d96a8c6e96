"""The built-in tasks over data sets: their fixtures, and the real data where it is."""

from __future__ import annotations

import atexit
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from elpo.interfaces import Task
from elpo.tasks.loading import load_task

FIXTURES = Path(__file__).parents[1] / "fixtures/tasks"

PATHS = {
    "gsm8k": "gsm8k",
    "math": "math",
    "math500": "math500.jsonl",
    "aime24": "aime24.jsonl",
    "aime25": "aime25.jsonl",
    "gpqa": "gpqa.csv",
    "mr_ben": "mr_ben",
    "livecodebench": "livecodebench.jsonl",
    "humaneval": "humaneval.jsonl",
    "mbpp": "mbpp.jsonl",
    "agent_rl": "agent_rl.jsonl",
}

CODE = ("livecodebench", "humaneval", "mbpp")

SHARED = Path(os.environ.get("ELPO_SHARED_DATA", Path(__file__).parents[2].parent / "shared/data"))


def fixture_task(name: str, **options: Any) -> Any:
    """A task over its fixture; code is stopped after half a second."""
    limits = {"timeout": 0.5} if name in CODE else {}
    return load_task(name, {"path": str(FIXTURES / PATHS[name]), **limits, **options})


@cache
def shared_task(name: str) -> Any:
    """The task over its fixture, the same for every test that does not change it: one grader to start."""
    task = fixture_task(name)
    atexit.register(task.close)
    return task


def real_task(name: str, path: str, **options: Any) -> Task:
    """A task over the shared data; skips where it is absent."""
    if not (SHARED / path).exists():
        pytest.skip(f"needs {path} of the shared data: set ELPO_SHARED_DATA to its folder")
    return load_task(name, {"path": str(SHARED / path), **options})
