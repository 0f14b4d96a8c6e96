"""The Python tool: what a call answers, what a state is, and what survives when something dies."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elpo.config import Config
from elpo.interfaces import Tool, ToolSession
from elpo.tools.python import PythonSession, PythonTool
from elpo.tools.sandbox import connection, states
from elpo.tools.sandbox.states import Interpreters
from elpo.training.assembly import make_tools
from elpo.types import Problem, ToolCall, ToolResult, ToolStatus

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

PROBLEM = Problem("p", (), "")
ALWAYS_FORK, NEVER_FORK = -1.0, float("inf")


@pytest.fixture(scope="module")
def tool() -> Iterator[PythonTool]:
    with PythonTool(state="session", num_workers=1) as tool:
        yield tool


@pytest.fixture(scope="module")
def strict() -> Iterator[PythonTool]:
    """Tight limits, so that running into them is quick, but time enough on a busy machine."""
    with PythonTool(state="session", num_workers=1, timeout=20, memory_mb=96, output_chars=200) as tool:
        yield tool


@pytest.fixture(scope="module")
def hasty() -> Iterator[PythonTool]:
    with PythonTool(state="session", num_workers=1, timeout=0.4, memory_mb=96, output_chars=200) as tool:
        yield tool


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


def eventually(condition: object, seconds: float = 5.0) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# --- what a call answers


def test_it_is_a_tool(tool: PythonTool) -> None:
    as_tool: Tool = tool
    session: ToolSession = as_tool.open(PROBLEM)
    result, _ = session.call(ToolCall("python", {"code": "1 + 1"}))
    assert (result.status, result.output) == (ToolStatus.OK, "2")
    assert as_tool.schema["function"]["name"] == "python"
    assert as_tool.schema["function"]["parameters"]["required"] == ["code"]
    tool.self_test()


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("", ""),
        ("x = 1", ""),
        ("None", ""),
        ("print('a')\n'b'", "a\n'b'"),
        ("if True:\n    3", ""),
        ("1; 2", "2"),
        ("import os\nos.write(1, b'raw')\nprint('é', '\\ud800')", "rawé \\ud800"),
        ("import sys\nprint('out')\nprint('err', file=sys.stderr)", "out\nerr"),
        ("from __future__ import annotations\ndef f(x: undefined): return 1\nf(0)", "1"),
        ("exit()", ""),
        ("__name__, __import__('sys')._getframe().f_code.co_filename", "('__main__', '<call 1>')"),
        ("import asyncio\nasync def f(): return 5\nasyncio.run(f())", "5"),
        ("import threading\nt = threading.Thread(target=print, args=(4,))\nt.start(); t.join()", "4"),
        ("hash('seed'), __import__('random').random()", "(-2711605883886029474, 0.8444218515250481)"),
    ],
)
def test_output_of_a_good_call(tool: PythonTool, code: str, output: str) -> None:
    shown = answer(tool.open(PROBLEM), code)
    if code.startswith("hash"):  # the hash function is the interpreter's; that it is fixed is not
        assert shown == answer(tool.open(PROBLEM), code)
        assert shown.endswith(output.split(", ")[1])
    else:
        assert shown == output


def test_traceback_has_the_programs_frames_only(tool: PythonTool) -> None:
    _, session = run(tool.open(PROBLEM), "import json\ndef parse(text):\n    return json.loads(text)")
    result, _ = run(session, "x = 1\nparse('{')")
    assert result.status is ToolStatus.PROGRAM_ERROR
    assert result.output.splitlines() == [
        "Traceback (most recent call last):",
        '  File "<call 2>", line 2, in <module>',
        "    parse('{')",
        '  File "<call 1>", line 3, in parse',
        "    return json.loads(text)",
        "json.decoder.JSONDecodeError: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
    ]


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("x = (", "SyntaxError: '(' was never closed"),
        ("a\0b", "null bytes"),
        ("raise ValueError('a') from KeyError('b')", "ValueError: a"),
        ("class E(Exception):\n    def __str__(self): raise E\nraise E", "<exception str() failed>"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("def f(): f()\nf()", "  [Previous line repeated 9"),
        ("def f(n): g(n) if n else 1/0\ndef g(n): f(n - 1)\nf(200)", "line 3, in <module>"),
        ("exit('why')", "SystemExit: why"),
        ("import sys\nsys.stderr.close()\n1/0", "ZeroDivisionError (not shown: ValueError)"),
        ("input()", "EOFError: EOF when reading a line"),
        ("(" * 5000, "too many nested parentheses"),
        ("-" * 100_000 + "1", ""),
    ],
)
def test_a_failing_program_is_data(tool: PythonTool, code: str, ending: str) -> None:
    result, session = run(tool.open(PROBLEM), code)
    assert result.status is ToolStatus.PROGRAM_ERROR
    assert ending in result.output
    assert len(result.output) < 4100
    assert answer(session, "2 + 2") == "4"


def test_state_keeps_what_ran_before_an_exception(tool: PythonTool) -> None:
    result, session = run(tool.open(PROBLEM), "x = 1\nprint('before')\n1/0\nx = 2")
    assert result.status is ToolStatus.PROGRAM_ERROR
    assert result.output.startswith("before\nTraceback")
    assert answer(session, "x") == "1"


@pytest.mark.parametrize(
    "arguments",
    [{}, {"code": None}, {"code": 3}, {"Code": "1"}, {"code": "\ud800"}, {"code": "1" * (1 << 21)}, None],
)
def test_garbage_arguments_are_malformed_calls(tool: PythonTool, arguments: object) -> None:
    session = after(tool.open(PROBLEM), "x = 7")
    result, same = session.call(ToolCall("python", arguments))  # type: ignore[arg-type]
    assert result.status is ToolStatus.MALFORMED_CALL
    assert '"code"' in result.output
    assert answer(same, "x") == "7"


def test_long_output_is_cut_in_the_middle_and_says_so(tool: PythonTool) -> None:
    shown = answer(tool.open(PROBLEM), "print('a' * 200_000 + 'b' * 200_000)")
    assert shown == "a" * 2000 + "\n[... 396000 characters cut ...]\n" + "b" * 2000


def test_streams_come_back_after_a_program_replaced_or_closed_them(tool: PythonTool) -> None:
    session = after(tool.open(PROBLEM), "import sys, io\nsys.stdout = io.StringIO()", "sys.stdout.close()")
    assert answer(session, "print('seen')") == "seen"


# --- what a state is


def test_state_persists_and_branches_are_independent(tool: PythonTool) -> None:
    start = after(tool.open(PROBLEM), "import random\nrandom.seed(1)\nitems = [1]\nclass C: n = 0")
    left = after(start, "items.append(2); C.n += 1; r = random.random()")
    right = after(start, "items.append(3)")
    assert answer(left, "items, C.n, round(r, 3)") == "([1, 2], 1, 0.134)"
    assert answer(right, "items, C.n, round(random.random(), 3)") == "([1, 3], 0, 0.134)"
    assert answer(start, "items, C.n, round(random.random(), 3)") == "([1], 0, 0.134)"
    assert answer(left, "round(random.random(), 3)") == "0.847"


STATEMENTS = st.sampled_from(
    [
        "x = x + 1",
        "items.append(x)",
        "x = random.randrange(1000)",
        "print(x, items)",
        "items = items[::-1] + [len(items)]",
        "x // (x % 2)",
        "x =",
        "del items[0]",
        "f = lambda: x * 2",
        "f()",
        "table = {s: hash(s) % 7 for s in 'abc'}\nprint(sorted(table))",
        "random.shuffle(items); items",
        "print('partial'); undefined",
        "alias = items; alias",
        "g = (i * x for i in range(9)) if 'g' not in globals() else g\nnext(g, None)",
    ]
)
PRELUDE = "import random\nx, items = 1, [3]"


def reference(programs: list[str]) -> str:
    """Everything printed by the programs, run one after the other by this interpreter."""
    namespace: dict[str, object] = {}
    before = random.getstate()
    random.seed(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for program in [PRELUDE, *programs]:
            with contextlib.suppress(Exception):
                exec(compile(program, "<reference>", "exec"), namespace)
        print(namespace["x"], namespace["items"], random.random())
    random.setstate(before)
    return printed.getvalue().splitlines()[-1]


@pytest.mark.parametrize("snapshot_seconds", [ALWAYS_FORK, NEVER_FORK])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(programs=st.lists(STATEMENTS, max_size=5))
def test_replayed_forked_and_live_states_are_one(
    tool: PythonTool, snapshot_seconds: float, programs: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "_SNAPSHOT_SECONDS", snapshot_seconds)
        mismatches = tool.num_replay_mismatches
        chain = [after(tool.open(PROBLEM), PRELUDE)]
        for program in programs:
            chain.append(run(chain[-1], program)[1])
        probe = "print(x, items, random.random())"
        for length in reversed(
            range(len(chain))
        ):  # every state but the last has lost its process, or is a snapshot
            assert answer(chain[length], probe) == reference(programs[:length])
        assert tool.num_replay_mismatches == mismatches


def test_an_expensive_state_is_kept_as_a_snapshot(tool: PythonTool, monkeypatch: pytest.MonkeyPatch) -> None:
    start = after(tool.open(PROBLEM), "import time\ntime.sleep(0.05)\nx = [0]")
    monkeypatch.setattr(Interpreters, "_replay", lambda *_: pytest.fail("a call was repeated"))
    for i in range(60):
        assert answer(start, f"x.append({i}); x") == f"[0, {i}]"


def test_without_fork_snapshots_states_are_replayed() -> None:
    with PythonTool(state="session", num_workers=1) as tool:
        tool._pool._zygotes[0].can_fork = False
        while tool._pool._spares:  # made when forking was thought possible
            tool._pool._spares.pop().close()
        start = after(tool.open(PROBLEM), "import time\ntime.sleep(0.05)\nx = [0]")
        tips = [after(start, f"x.append({i})") for i in range(3)]
        assert [answer(tip, "x") for tip in tips] == ["[0, 0]", "[0, 1]", "[0, 2]"]
        assert answer(start, "x") == "[0]"
        assert len(group_members(zygote_groups(tool)[0])) <= 3 + 2 + 2  # tips, spares, zygote: no snapshot


def test_replay_that_prints_something_else_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_SNAPSHOT_SECONDS", NEVER_FORK)
    with PythonTool(state="session", num_workers=1) as tool:
        first = after(tool.open(PROBLEM), "import time\nt = time.perf_counter_ns(); t")
        after(first, "1")
        with pytest.warns(RuntimeWarning, match="call 1 printed something else"):
            answer(first, "2")
        assert tool.num_replay_mismatches == 1


def test_processes_beyond_the_cap_are_replayed() -> None:
    with PythonTool(state="session", num_workers=1, max_live=3) as tool:
        sessions = [after(tool.open(PROBLEM), f"x = {i}") for i in range(12)]
        assert eventually(
            lambda: len(group_members(zygote_groups(tool)[0])) <= 3 + 2 + 2
        )  # cap, spares, zygote
        assert [answer(session, "x") for session in sessions] == [str(i) for i in range(12)]


def test_threads_use_sessions_at_once(tool: PythonTool) -> None:
    shared = after(tool.open(PROBLEM), "total = 100")

    def rollout(i: int) -> str:
        session = after(shared, f"total += {i}", "total += 1")
        return answer(session, "total")

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(rollout, range(40))) == [str(101 + i) for i in range(40)]


# --- without state


def test_without_state_every_call_starts_from_the_setup() -> None:
    with PythonTool(num_workers=1) as stateless:
        stateless.self_test()
        assert "nothing persists" in stateless.schema["function"]["description"]
        start = stateless.open(Problem("p", (), "", {"python_setup": "items = [1]"}))
        session = after(start, "x = 1; items.append(2)", "items.append(3)")
        assert answer(session, "items, 'x' in globals()") == "([1], False)"
        assert answer(session, "import random\nrandom.random()") == answer(
            start, "import random; random.random()"
        )
        result, session = run(session, "1/0")
        assert '"<call 1>"' in result.output
        result, session = run(session, "import os; os._exit(0)")
        assert result.status is ToolStatus.PROGRAM_ERROR
        assert answer(session, "len(items)") == "1"


@pytest.mark.parametrize(
    ("wanted", "attribute", "persists"),
    [
        ("task", "session", True),
        ("task", None, False),
        ("none", "session", False),
        ("session", None, True),
    ],
)
def test_the_task_says_whether_calls_build_on_each_other(
    wanted: str, attribute: str | None, persists: bool
) -> None:
    class Task:
        tool_names = ("python",)

    if attribute:
        Task.python_state = attribute  # type: ignore[attr-defined]
    made = make_tools(Task(), Config.model_validate({"python": {"state": wanted}}))["python"]  # type: ignore[arg-type]
    try:
        session = after(made.open(PROBLEM), "x = 1")  # type: ignore[arg-type]
        assert answer(session, "'x' in globals()") == str(persists)
    finally:
        made.close()


# --- setup


def test_setup_runs_first_and_is_not_a_call(tool: PythonTool) -> None:
    setup = (
        "import sys\n"
        "class Registry:\n"
        "    def lookup(self):\n"
        "        frame = sys._getframe()\n"
        "        while frame.f_back.f_code.co_filename.startswith('<call'):\n"
        "            frame = frame.f_back\n"
        "        return frame.f_code.co_name, frame.f_code.co_filename\n"
        "registry = Registry()\n"
    )
    session = tool.open(Problem("p", (), "", {"python_setup": setup}))
    shown = answer(session, "def inner(): return registry.lookup()\ninner()")
    assert shown == "('<module>', '<call 1>')"
    assert answer(session, "registry.lookup()[1]") == "'<call 1>'"


@pytest.mark.parametrize("setup", ["1/0", "x = (", 3])
def test_setup_that_fails_is_the_tasks_mistake(tool: PythonTool, setup: object) -> None:
    with pytest.raises(ValueError, match="python_setup"):
        tool.open(Problem("p", (), "", {"python_setup": setup}))


# --- limits: the state is that before the call

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


# --- what survives, what is left behind


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


# --- options and speed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"memory_mb": 1}, "memory_mb=1"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"preload": "math"}, "preload='math'"),
        ({"preload": ("os; 1",)}, "preload"),
        ({"preload": ("no_such_module_here",)}, "no_such_module_here"),
        ({"isolation": "off"}, "isolation='off'"),
        ({"state": "some"}, "state='some'"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PythonTool(**options)  # type: ignore[arg-type]


def test_other_systems_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RuntimeError, match=r"needs Linux, not darwin.*container or virtual machine"):
        PythonTool()


def test_an_extra_package_is_there_only_if_preloaded(tool: PythonTool) -> None:
    result, _ = run(tool.open(PROBLEM), "import numpy")
    assert "ModuleNotFoundError" in result.output
    with PythonTool(state="session", num_workers=1, preload=("numpy",)) as numeric:
        assert "numpy" in numeric.schema["function"]["description"]
        sessions = [numeric.open(PROBLEM) for _ in range(2)]
        code = "import numpy as np\nnp.linalg.det(np.eye(3)), np.random.rand()"
        assert answer(sessions[0], code) == answer(sessions[1], code)


def test_a_call_is_much_faster_than_a_fresh_interpreter(tool: PythonTool) -> None:
    def seconds(calls: int, call: object) -> float:
        assert callable(call)
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return sorted(times)[calls // 2]

    current = [after(tool.open(PROBLEM), "x = 0")]

    def in_place() -> None:
        current[0] = after(current[0], "x += 1\nprint(x)")

    fresh = seconds(
        7, lambda: subprocess.run([sys.executable, "-I", "-S", "-c", "print(1)"], capture_output=True)
    )
    assert seconds(200, in_place) * 10 < fresh
