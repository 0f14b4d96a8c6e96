"""The Python tool when something dies: what is not noticed, what is a fault, what is left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from elpo.tools.python import PythonTool
from elpo.tools.sandbox import connection
from elpo.types import ToolStatus
from tests.tools.python_calls import (
    LINUX_ONLY,
    PROBLEM,
    after,
    answer,
    eventually,
    group_members,
    run,
    zygote_groups,
)

pytestmark = LINUX_ONLY


def test_killing_the_zygote_between_calls_is_not_noticed() -> None:
    with PythonTool(state="session", num_workers=1) as tool:
        session = after(tool.open(PROBLEM), "x = 1", "x += 1")
        os.killpg(zygote_groups(tool)[0], signal.SIGKILL)
        assert answer(session, "x") == "2"
        tool.self_test()


def test_killing_the_process_of_a_session_is_not_noticed(tool: PythonTool) -> None:
    session = after(tool.open(PROBLEM), "x = 1", "x += 1")
    for _ in range(20):
        assert session._state is not None and session._state.process is not None
        os.kill(session._state.process._pid, signal.SIGKILL)
        session = after(session, "x += 1", "x -= 1")
    assert answer(session, "x") == "2"


def test_killing_the_zygote_during_a_call_is_not_noticed() -> None:
    with PythonTool(state="session", num_workers=1) as tool:
        session = after(tool.open(PROBLEM), "x = 1")
        threading.Timer(0.2, os.killpg, (zygote_groups(tool)[0], signal.SIGKILL)).start()
        assert answer(session, "import time\ntime.sleep(0.4)\nx") == "1"


def test_a_tool_that_cannot_start_processes_reports_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with PythonTool(state="session", num_workers=1) as tool:
        session = after(tool.open(PROBLEM), "x = 1")
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        os.killpg(zygote_groups(tool)[0], signal.SIGKILL)
        result, same = run(session, "x")
        assert result.status is ToolStatus.INFRASTRUCTURE_FAULT
        assert "zygote" in result.output  # that it ended, or that it cannot be restarted: who looks first
        monkeypatch.undo()
        assert answer(same, "x") == "1"


def test_a_trainer_without_descriptors_reports_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with PythonTool(num_workers=1) as tool:
        session = tool.open(PROBLEM)
        run(session, "1")
        tool._pool._spares.clear()

        def none_left() -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(connection.socket, "socketpair", none_left)
        descriptors = len(os.listdir("/proc/self/fd"))
        result, same = run(session, "1")
        assert result.status is ToolStatus.INFRASTRUCTURE_FAULT
        assert "Too many open files" in result.output
        assert len(os.listdir("/proc/self/fd")) == descriptors
        monkeypatch.undo()
        assert answer(same, "1 + 1") == "2"


def test_closed_sessions_and_tools() -> None:
    tool = PythonTool(state="session", num_workers=1)
    session = after(tool.open(PROBLEM), "x = 1")
    follower = after(session, "x += 1")
    session.close()
    session.close()
    assert run(session, "x")[0].status is ToolStatus.INFRASTRUCTURE_FAULT
    assert answer(follower, "x") == "2"
    tool.close()
    tool.close()
    assert run(follower, "x")[0].status is ToolStatus.INFRASTRUCTURE_FAULT
    with pytest.raises(RuntimeError, match="closed"):
        tool.open(PROBLEM)


def test_closing_the_tool_ends_a_call_that_runs() -> None:
    tool = PythonTool(state="session", num_workers=1)
    session = tool.open(PROBLEM)
    threading.Timer(0.2, tool.close).start()
    began = time.perf_counter()
    assert run(session, "import time\ntime.sleep(60)")[0].status is ToolStatus.INFRASTRUCTURE_FAULT
    assert time.perf_counter() - began < 3.0


def test_300_sessions_leave_nothing_behind() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    tool = PythonTool(state="session", num_workers=1)
    group = zygote_groups(tool)[0]
    run(tool.open(PROBLEM), "1")
    idle = len(group_members(group))
    open_descriptors = len(os.listdir("/proc/self/fd"))
    for i in range(300):
        session = after(tool.open(PROBLEM), "x = 1")
        if i % 30 == 0:
            run(session, "import os; os._exit(1)")
            run(session, "x")
        if i % 2:
            session.close()
    del session
    assert eventually(lambda: len(group_members(group)) <= idle)
    assert "Z" not in group_members(group)
    assert abs(len(os.listdir("/proc/self/fd")) - open_descriptors) <= 4  # a spare more or less
    tool.close()
    assert group_members(group) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_nothing_outlives_a_killed_trainer() -> None:
    program = (
        "import threading, time\n"
        "from elpo.tools.python import PythonTool\n"
        "from elpo.types import Problem, ToolCall\n"
        "tool = PythonTool(state='session', num_workers=1, timeout=60)\n"
        "call = ToolCall('python', {'code': 'import time; time.sleep(60)'})\n"
        "threading.Thread(target=tool.open(Problem('p', (), '')).call, args=(call,)).start()\n"
        "time.sleep(0.2)\n"
        "print(tool._pool._zygotes[0]._process.pid, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        group = int(trainer.stdout.readline())
        assert len(group_members(group)) >= 2
        trainer.kill()
    assert eventually(lambda: not [state for state in group_members(group) if state != "Z"])
