"""What the Python tool costs and holds: calls a second, branches, snapshots, recovery, real calls, a soak.

    python benchmarks/sandbox.py                 everything, about five minutes on two cores
    python benchmarks/sandbox.py --quick         fewer repetitions, a soak of 1,000 calls

Fresh interpreters and the tool take turns within one run, so that ratios mean something on a busy machine;
absolute times are those of the machine at that moment. Recorded calls are read from ../shared/data (or
ELPO_SHARED_DATA) and left out where that is missing. Writes sandbox.json and sandbox.md to --out.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from report import arguments, publish  # noqa: E402

from elpo.tools.python import PythonSession, PythonTool  # noqa: E402
from elpo.types import Problem, ToolCall, ToolStatus  # noqa: E402
from tests.tools.recorded_calls import FOLDER, PRELOAD, recorded_calls, replay  # noqa: E402
from tests.tools.soak import soak  # noqa: E402

PROBLEM = Problem("benchmark", (), "")
TRIVIAL = "print(6 * 7)"
SYMPY = "from sympy import symbols, solve\nx = symbols('x')\nprint(solve(x**2 - 7*x + 12, x))"
STATE = "import sympy\ntable = {i: [i] * 8 for i in range(20_000)}\nx = 1"


def run(session: PythonSession, code: str) -> tuple[str, PythonSession]:
    result, after = session.call(ToolCall("python", {"code": code}))
    if result.status is not ToolStatus.OK:
        raise SystemExit(f"{code!r} gave {result}")
    return result.output, after


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def turns(num: int, **calls: Callable[[], Any]) -> dict[str, list[float]]:
    """Milliseconds of each of `num` rounds; in a round every call has its turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(num):
        for name, call in calls.items():
            times[name].append(timed(call))
    return times


def median(times: list[float]) -> float:
    return statistics.median(times)


def fresh(code: str) -> None:
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True)
    if done.returncode:
        raise SystemExit(done.stderr.decode())


def calls_a_second(num: int) -> dict[str, float]:
    """A stateless call against a fresh interpreter, one client; and steps of a session."""
    with (
        PythonTool(preload=PRELOAD, num_workers=2) as tool,
        PythonTool(state="session", num_workers=1) as lean,
    ):
        start = tool.open(PROBLEM)
        steps = [run(lean.open(PROBLEM), "n = 0")[1]]

        def step() -> None:
            steps[0] = run(steps[0], "n += 1\nn")[1]

        trivial = turns(
            num,
            fresh=lambda: fresh(TRIVIAL),
            tool=lambda: run(start, TRIVIAL),
            lean=lambda: run(lean.open(PROBLEM), TRIVIAL),
            step=step,
        )
        sympy = turns(max(5, num // 10), fresh=lambda: fresh(SYMPY), tool=lambda: run(start, SYMPY))
    return {
        "fresh trivial ms": median(trivial["fresh"]),
        "tool trivial ms": median(trivial["tool"]),
        "tool without packages trivial ms": median(trivial["lean"]),
        "session step ms": median(trivial["step"]),
        "fresh sympy ms": median(sympy["fresh"]),
        "tool sympy ms": median(sympy["tool"]),
        "ratio trivial": median(trivial["fresh"]) / median(trivial["tool"]),
        "ratio trivial without packages": median(trivial["fresh"]) / median(trivial["lean"]),
        "ratio sympy": median(sympy["fresh"]) / median(sympy["tool"]),
    }


def branches(num: int) -> dict[str, float]:
    """A branch and a step in it, from a state that is expensive to repeat and from one that is not."""
    with PythonTool(state="session", num_workers=1) as tool:
        _, dear = run(tool.open(PROBLEM), "import time\ntime.sleep(0.05)\nx = list(range(100_000))")
        cheap = tool.open(PROBLEM)
        for i in range(6):
            _, cheap = run(cheap, f"x = {i}")
        times = turns(num, forked=lambda: run(dear, "len(x)"), replayed=lambda: run(cheap, "x"))
    p95 = {name: sorted(values)[int(0.95 * len(values))] for name, values in times.items()}
    return {
        "forked branch and step ms": median(times["forked"]),
        "forked branch and step p95 ms": p95["forked"],
        "replayed branch (6 calls) and step ms": median(times["replayed"]),
        "replayed branch (6 calls) and step p95 ms": p95["replayed"],
    }


def snapshots(num: int) -> dict[str, float]:
    """Memory of many live states of one session with sympy loaded and 20,000 lists: proportional share."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16 * num), hard))
    with PythonTool(state="session", num_workers=1, preload=PRELOAD, max_live=2 * num) as tool:
        _, root = run(tool.open(PROBLEM), f"{STATE}\nimport time\ntime.sleep(0.05)")
        states = [run(root, f"x = {i}\ntable[{i}] = 'changed'")[1] for i in range(num)]
        kilobytes = count = 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == tool._pool._zygotes[0]._process.pid:
                    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    kilobytes += int(rollup.partition("\nPss:")[2].split()[0])
                    count += 1
            except OSError:
                continue
        for i in (123 % num, 456 % num):
            answer, _ = run(states[i], "x, table[x]")
            if answer != f"({i}, 'changed')":
                raise SystemExit(f"state {i} answered {answer}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return {"live states": num, "processes": count, "memory GB": kilobytes / 2**20}


def recovery(num: int) -> dict[str, float]:
    """Seconds from a kill to the next answer that is right."""
    worst: dict[str, float] = {}
    with PythonTool(state="session", num_workers=2, preload=PRELOAD) as tool:

        def after(kill: Callable[[PythonSession], None]) -> float:
            _, session = run(tool.open(PROBLEM), "x = 41")
            kill(session)
            return timed(lambda: run(session, "x + 1")) / 1000

        def kill_session(session: PythonSession) -> None:
            os.kill(session._state.process._pid, signal.SIGKILL)  # type: ignore[union-attr]

        def kill_zygote(_: PythonSession) -> None:
            os.killpg(tool._pool._zygotes[0]._process.pid, signal.SIGKILL)
            time.sleep(0.05)

        def kill_all(_: PythonSession) -> None:
            for zygote in tool._pool._zygotes:
                os.killpg(zygote._process.pid, signal.SIGKILL)
            time.sleep(0.05)

        for name, kill in (("session", kill_session), ("zygote", kill_zygote)):
            times = []
            for _ in range(num):
                times.append(after(kill))
                while not all(zygote.alive() for zygote in tool._pool._zygotes):
                    run(tool.open(PROBLEM), "1")  # a dead zygote is replaced when it is its turn
                    time.sleep(0.05)
            worst[f"{name} killed, worst s"] = max(times)
        worst["all zygotes killed, with sympy to import again, s"] = after(kill_all)
    with PythonTool(state="session", num_workers=1) as tool:
        worst["all zygotes killed, standard library, worst s"] = max(after(kill_all) for _ in range(num))
    return worst


def real_calls() -> dict[str, float] | None:
    if not FOLDER.exists():
        return None
    with PythonTool(preload=PRELOAD, num_workers=1) as tool:
        began = time.perf_counter()
        found = replay(tool, recorded_calls())
        seconds = time.perf_counter() - began
    return {
        "calls": found.num_calls,
        "equal outputs": found.num_equal,
        "recorded failures": found.num_failures_recorded,
        "recorded failures that fail again": found.num_failures_repeated,
        "infrastructure faults": found.statuses[ToolStatus.INFRASTRUCTURE_FAULT],
        "calls/s, one client": found.num_calls / seconds,
    }


def soaked(num_calls: int) -> dict[str, float]:
    began = time.perf_counter()
    report = soak(num_calls)
    return {
        "calls": report.num_calls,
        "zygotes killed": report.num_zygotes_killed,
        "wrong answers": len(report.wrong),
        **{f"status {status.value}": count for status, count in sorted(report.statuses.items())},
        "memory growth MB": report.memory_growth_mb,
        "descriptors left (spares included)": report.descriptors_left,
        "processes left": report.processes_left,
        "zombies": report.zombies,
        "files left": report.files_left,
        "seconds": time.perf_counter() - began,
    }


def targets(results: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(What is asked, what was measured, whether it holds)."""
    speed, branch = results["calls_a_second"], results["branches"]
    memory, recover = results["snapshots"], results["recovery"]
    forked = branch["forked branch and step ms"]
    slowest = max(seconds for name, seconds in recover.items() if "sympy" not in name)
    return [
        (
            "sympy call >= 10x a fresh interpreter's calls/s",
            f"{speed['ratio sympy']:.1f}x",
            speed["ratio sympy"] >= 10,
        ),
        (
            "trivial call >= 1.5x a fresh interpreter's calls/s",
            f"{speed['ratio trivial']:.1f}x with sympy and numpy preloaded, "
            f"{speed['ratio trivial without packages']:.1f}x without",
            speed["ratio trivial"] >= 1.5,
        ),
        ("branch plus step <= 10 ms", f"{forked:.1f} ms", forked <= 10),
        (
            f"{memory['live states']} live snapshots under 2.5 GB",
            f"{memory['memory GB']:.2f} GB in {memory['processes']} processes",
            memory["memory GB"] < 2.5,
        ),
        ("recovers from every kill within a second", f"{slowest:.2f} s at worst", slowest < 1),
    ]


def table(results: dict[str, Any]) -> str:
    lines = ["| asked | measured | holds |", "|---|---|---|"]
    for asked, measured, holds in targets(results):
        lines.append(f"| {asked} | {measured} | {'yes' if holds else '**no**'} |")
    for name, figures in results.items():
        if figures is None:
            continue
        lines += ["", f"## {name.replace('_', ' ').capitalize()}", "", "| figure | value |", "|---|---|"]
        for figure, value in figures.items():
            lines.append(f"| {figure} | {f'{value:.2f}' if isinstance(value, float) else value} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    num = 20 if args.quick else 100
    results: dict[str, Any] = {}
    with PythonTool(preload=PRELOAD) as tool:
        tool.self_test()
        isolation = str(tool.describe())
    parts: dict[str, Callable[[], Any]] = {
        "calls_a_second": lambda: calls_a_second(num),
        "branches": lambda: branches(num),
        "snapshots": lambda: snapshots(500),
        "recovery": lambda: recovery(2 if args.quick else 5),
        "recorded_calls": real_calls,
        "soak": lambda: soaked(1000 if args.quick else 10_000),
    }
    for name, part in parts.items():
        results[name] = part()
        print(name, json.dumps(results[name]), flush=True)
    publish(args.out, "sandbox", "Python tool", results, table(results), isolation=isolation)


if __name__ == "__main__":
    main()
