"""Calls of the Python tool that run into a limit: the state is that before the call."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from elpo.tools.python import PythonTool
from elpo.types import ToolStatus
from tests.tools.python_calls import LINUX_ONLY, PROBLEM, after, answer, run

pytestmark = LINUX_ONLY


@pytest.fixture(scope="module")
def strict() -> Iterator[PythonTool]:
    """Tight limits, so that running into them is quick, but time enough on a busy machine."""
    with PythonTool(state="session", num_workers=1, timeout=20, memory_mb=96, output_chars=200) as tool:
        yield tool


@pytest.fixture(scope="module")
def hasty() -> Iterator[PythonTool]:
    with PythonTool(state="session", num_workers=1, timeout=0.4, memory_mb=96, output_chars=200) as tool:
        yield tool


LIMITS = [
    ("while True: pass", ToolStatus.TIMEOUT, "timed out"),
    ("print('shown')\nimport time\ntime.sleep(60)", ToolStatus.TIMEOUT, "shown\n[timed out"),
    ("9 ** 9 ** 9", ToolStatus.TIMEOUT, "timed out"),
    ("import signal\nsignal.signal(15, lambda *_: 0)\nwhile True: 1", ToolStatus.TIMEOUT, "timed out"),
    ("x = bytearray(1 << 30)", ToolStatus.RESOURCE_LIMIT, "memory limit of 96 MB"),
    ("y = []\nwhile True: y.append(bytearray(1 << 22))", ToolStatus.RESOURCE_LIMIT, "memory limit"),
    ("while True: print('spam' * 1000)", ToolStatus.RESOURCE_LIMIT, "MiB of output"),
    ("import os\nprint('last words')\nos._exit(0)", ToolStatus.PROGRAM_ERROR, "last words\n[the interpreter"),
    ("import ctypes\nctypes.string_at(0)", ToolStatus.PROGRAM_ERROR, "exited or crashed"),
    ("import os\nos.closerange(0, 64)", ToolStatus.PROGRAM_ERROR, "exited or crashed"),
    ("import os\n[os.write(fd, b'??') for fd in range(3, 9)]", ToolStatus.PROGRAM_ERROR, ""),
]


@pytest.mark.parametrize(("code", "status", "note"), LIMITS)
def test_a_stopped_call_changes_nothing(
    strict: PythonTool, hasty: PythonTool, code: str, status: ToolStatus, note: str
) -> None:
    tool = hasty if status is ToolStatus.TIMEOUT else strict
    session = after(tool.open(PROBLEM), "x = 'before'")
    began = time.perf_counter()
    result, same = run(session, "x = 'during'\n" + code)
    assert time.perf_counter() - began < 15.0
    assert result.status is status
    assert note in result.output
    assert len(result.output) < 500
    if "[os.write" not in code:
        assert answer(same, "x") == "'before'"
    assert answer(tool.open(PROBLEM), "'x' in globals()") == "False"


def test_cpu_limit_counts_all_threads() -> None:
    burn = (
        "import threading\ndef burn():\n    while True: pass\nthreading.Thread(target=burn).start()\nburn()"
    )
    with PythonTool(state="session", num_workers=1, timeout=20, cpu_seconds=0.2) as tool:
        result, _ = run(tool.open(PROBLEM), burn)
        assert result.status is ToolStatus.RESOURCE_LIMIT
        assert "CPU limit of 0.2 s" in result.output
        assert result.seconds < 15
