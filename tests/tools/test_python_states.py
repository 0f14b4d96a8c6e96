"""What a state of the Python tool is: branches, replays and snapshots, no state, the setup."""

from __future__ import annotations

import contextlib
import io
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elpo.config import Config
from elpo.tools.python import PythonTool
from elpo.tools.sandbox import states
from elpo.tools.sandbox.states import Interpreters
from elpo.training.tools import make_tools
from elpo.types import Problem, ToolStatus
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

ALWAYS_FORK, NEVER_FORK = -1.0, float("inf")


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
