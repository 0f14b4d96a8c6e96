"""What the tests of the Python tool say of its calls and of the processes behind them."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from elpo.tools.python import PythonSession, PythonTool
from elpo.types import Problem, ToolCall, ToolResult, ToolStatus

LINUX_ONLY = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")
PROBLEM = Problem("p", (), "")


def run(session: PythonSession, code: object) -> tuple[ToolResult, PythonSession]:
    return session.call(ToolCall("python", {"code": code}))


def answer(session: PythonSession, code: str) -> str:
    """The output of a call that must succeed; the state it leads to is dropped."""
    result, _ = run(session, code)
    assert result.status is ToolStatus.OK, result
    return result.output


def after(session: PythonSession, *codes: str) -> PythonSession:
    for code in codes:
        result, session = run(session, code)
        assert result.status is ToolStatus.OK, result
    return session


def zygote_groups(tool: PythonTool) -> list[int]:
    return [zygote._process.pid for zygote in tool._pool._zygotes]


def group_members(group: int) -> list[str]:
    """State letters of the processes in a process group, zombies included."""
    members = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                members.append(fields[0])
    return members


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
