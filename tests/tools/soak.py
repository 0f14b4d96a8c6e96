"""Thousands of good, bad and hostile calls at once, while zygotes are killed: what remains, what is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from elpo.tools.python import PythonSession, PythonTool
from elpo.types import Problem, ToolCall, ToolStatus
from tests.tools.python_calls import group_members

OK, ERROR, TIMEOUT, LIMIT, MALFORMED = (
    ToolStatus.OK, ToolStatus.PROGRAM_ERROR, ToolStatus.TIMEOUT, ToolStatus.RESOURCE_LIMIT,
    ToolStatus.MALFORMED_CALL,
)  # fmt: skip
FOLDERS = ("/tmp", "/dev/shm", "/var/tmp")
MARK = f"elpo-soak-{os.getpid()}"
BAD: dict[object, set[ToolStatus]] = {
    "1/0": {ERROR},
    "x = (": {ERROR},
    "raise SystemExit(3)": {ERROR},
    "undefined_name": {ERROR},
    "print('a' * 300_000)": {OK},
    "def f(): f()\nf()": {ERROR},
    None: {MALFORMED},
    7: {MALFORMED},
    "\ud800": {MALFORMED},
}
HOSTILE: dict[object, set[ToolStatus]] = {
    "while True: pass": {TIMEOUT, LIMIT},
    "import time; time.sleep(60)": {TIMEOUT},
    "while True: print('spam' * 10_000)": {LIMIT, TIMEOUT},
    "x = bytearray(1 << 34)": {LIMIT},
    "y = []\nwhile True: y.append(bytearray(1 << 24))": {LIMIT, TIMEOUT},
    "import os; os._exit(0)": {ERROR},
    "import ctypes; ctypes.string_at(0)": {ERROR},
    "import os; os.closerange(0, 1024)": {ERROR},
    "import os\n[os.write(fd, b'k1' * 99) for fd in (1, 3)]": {OK, ERROR},
    "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass": {TIMEOUT, LIMIT},
    "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()": {
        ERROR, TIMEOUT, LIMIT,
    },
    "import threading\ndef f():\n    while True: pass\nthreading.Thread(target=f, daemon=True).start()": {OK},
    "import os; kept = os.pipe()": {OK},
    "import socket; socket.socket()": {ERROR},
    "open('/etc/passwd')": {ERROR},
    f"for f in {FOLDERS}:\n    try: open(f + '/{MARK}', 'w').write('x')\n    except OSError: pass": {OK},
    "import sys\nsys.modules.clear()": {OK, ERROR},
    "import builtins\nbuiltins.__dict__.clear()": {OK, ERROR},
}  # fmt: skip


@dataclass
class SoakReport:
    """Everything that must not grow, and everything that must not be lost."""

    num_calls: int = 0
    num_zygotes_killed: int = 0
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[ToolStatus] = field(default_factory=Counter)
    memory_growth_mb: float = 0.0
    descriptors_left: int = 0
    processes_left: int = 0
    zombies: int = 0
    files_left: int = 0


def soak(num_calls: int, seed: int = 0, num_threads: int = 8, kill_every: int = 1000) -> SoakReport:
    """Run `num_calls` calls in sessions of up to twelve, some of them branching, and count what remains."""
    report = SoakReport()
    lock = threading.Lock()
    started = iter(range(num_calls))
    with PythonTool(state="session", num_workers=2, timeout=0.5, memory_mb=256, max_live=32) as tool:
        _drain(tool, 100, seed)  # threads, caches and allocator reach their size
        memory, descriptors = _resident_mb(), len(os.listdir("/proc/self/fd"))

        def worker(number: int) -> None:
            rng = random.Random(f"{seed} {number}")
            while True:
                for status, problem in _rollout(tool, rng):
                    with lock:
                        call = next(started, None)
                        if call is None:
                            return
                        report.num_calls += 1
                        report.statuses[status] += 1
                        report.wrong += [problem] if problem else []
                    if call % kill_every == kill_every // 2:
                        report.num_zygotes_killed += _kill_zygote(tool, rng)

        with ThreadPoolExecutor(num_threads) as executor:
            list(executor.map(worker, range(num_threads)))
        groups = [zygote._process.pid for zygote in tool._pool._zygotes]
        tool._interpreters._live.close()
        report.memory_growth_mb = _resident_mb() - memory
        report.descriptors_left = len(os.listdir("/proc/self/fd")) - descriptors
    states = [state for group in groups for state in group_members(group)]
    report.processes_left, report.zombies = len(states), states.count("Z")
    report.files_left = sum(os.path.exists(f"{folder}/{MARK}") for folder in FOLDERS)
    return report


def _rollout(tool: PythonTool, rng: random.Random) -> Iterator[tuple[ToolStatus, str]]:
    """One session: what each call gave, and what was wrong with it, if anything."""
    session = tool.open(Problem("soak", (), "", {"python_setup": "total = 0"}))
    total = 0
    for _ in range(rng.randrange(1, 13)):
        kind = rng.choices(("good", "branch", "bad", "hostile"), (60, 10, 20, 10))[0]
        if kind in ("good", "branch"):
            amount = rng.randrange(100)
            status, output, after = _call(session, f"total += {amount}\ntotal")
            expected = str(total + amount)
            yield (
                status,
                "" if (status, output) == (OK, expected) else f"{kind}: {expected}, got {output[-300:]}",
            )
            if status is OK and kind == "good":
                session, total = after, total + amount
        else:
            code, expected_statuses = rng.choice(list((BAD if kind == "bad" else HOSTILE).items()))
            status, output, _ = _call(session, code)
            yield status, "" if status in expected_statuses else f"{code!r}: {status}, {output[-300:]}"


def _call(session: PythonSession, code: object) -> tuple[ToolStatus, str, PythonSession]:
    result, after = session.call(ToolCall("python", {"code": code}))
    return result.status, result.output, after


def _drain(tool: PythonTool, num_calls: int, seed: int) -> None:
    rng = random.Random(seed)
    done = 0
    while done < num_calls:
        done += sum(1 for _ in _rollout(tool, rng))


def _kill_zygote(tool: PythonTool, rng: random.Random) -> int:
    victim = rng.choice(tool._pool._zygotes)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(victim._process.pid, signal.SIGKILL)
        return 1
    return 0


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
