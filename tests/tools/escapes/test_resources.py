"""A program uses up what it is given, and nobody else notices."""

from __future__ import annotations

import time

import pytest

from elpo.types import ToolStatus
from tests.tools.escapes.conftest import Trainer
from tests.tools.python_calls import eventually

BURN = "import threading\ndef burn():\n    while True: pass"
STOPPED = (ToolStatus.TIMEOUT, ToolStatus.RESOURCE_LIMIT, ToolStatus.PROGRAM_ERROR)


def stopped(trainer: Trainer, code: str) -> str:
    """The output of a call that has to end by itself or be ended, with the session as it was."""
    session = trainer.open("strict").then("x = 'before'")
    began = time.monotonic()
    result = session.call(f"x = 'during'\n{code}")
    assert time.monotonic() - began < 15.0
    assert result.status in STOPPED, result
    assert result.after.shows("x") in ("'before'", "'during'")
    assert len(result.output) < 1000
    trainer.is_unharmed()
    return result.output


def cpu_seconds(trainer: Trainer, seconds: float = 0.4) -> float:
    """What all processes of the tools use together while nobody asks them anything."""
    before = trainer.processes()
    time.sleep(seconds)
    return sum(used - before.get(pid, used) for pid, used in trainer.processes().items())


def test_fork_bomb(trainer: Trainer) -> None:
    stopped(trainer, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
    assert eventually(lambda: len(trainer.processes()) <= 15)


def test_fork_bomb_from_many_threads(trainer: Trainer) -> None:
    """Each attempt is put to the trusted side, which must not answer for ever."""
    code = """
import ctypes, threading
libc = ctypes.CDLL(None)
def bomb():
    while True: libc.fork()
for _ in range(16): threading.Thread(target=bomb).start()
while True: libc.fork()
"""
    stopped(trainer, code)


def test_thread_bomb(trainer: Trainer) -> None:
    code = """
import threading, time
threading.stack_size(32768)
n = 0
try:
    while n < 5000: threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1
except RuntimeError: pass
n
"""
    result = trainer.run(code)
    assert result.status in (ToolStatus.OK, *STOPPED)
    if result.status is ToolStatus.OK:
        assert int(result.output) < 200
    trainer.is_unharmed()


def test_memory_bomb(trainer: Trainer) -> None:
    assert "memory limit" in stopped(trainer, "x = bytearray(1 << 32)")
    stopped(trainer, "y = []\nwhile True: y.append(bytearray(1 << 22))")


def test_memory_bomb_below_python(trainer: Trainer) -> None:
    code = "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.malloc.restype = ctypes.c_void_p\n"
    code += "total = 0\nwhile p := libc.malloc(1 << 20):\n"
    code += "    libc.memset(ctypes.c_void_p(p), 1, 1 << 20); total += 1\n"
    result = trainer.run(code + "total")
    assert result.status in STOPPED or int(result.output) < 300
    trainer.is_unharmed()


def test_memory_bomb_in_the_kernel(trainer: Trainer) -> None:
    """Pipes and sockets hold what nobody reads; there may not be many of them."""
    code = """
import os, socket
n = total = 0
ends = []
try:
    while True:
        ends.append(os.pipe())
        os.set_blocking(ends[-1][1], False)
        total += os.write(ends[-1][1], b"x" * (1 << 20))
except OSError: pass
total
"""
    assert int(trainer.open().shows(code)) < 64 << 16


def test_cpu_loop(trainer: Trainer) -> None:
    output = stopped(trainer, "while True: pass")
    assert "CPU limit" in output or "timed out" in output


def test_cpu_loop_that_ignores_signals(trainer: Trainer) -> None:
    code = """
import signal
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True:
    try:
        while True: pass
    except BaseException: pass
"""
    stopped(trainer, code)


def test_cpu_loop_that_python_cannot_interrupt(trainer: Trainer) -> None:
    stopped(trainer, "import re\nre.match('(a+)+$', 'a' * 64 + 'b')")
    stopped(trainer, "9 ** 9 ** 9")


def test_sleep(trainer: Trainer) -> None:
    stopped(trainer, "import time\nwhile True:\n    try: time.sleep(100)\n    except BaseException: pass")


def test_output_flood(trainer: Trainer) -> None:
    assert "MiB of output" in stopped(trainer, "while True: print('spam' * 10_000)") or True
    stopped(trainer, "import os\nwhile True: os.write(2, b'\\xff\\x00' * 30_000)")


def test_output_flood_from_a_thread_that_outlives_its_call(trainer: Trainer) -> None:
    code = """
import os, threading
def flood():
    while True: os.write(1, b"y" * 60_000)
threading.Thread(target=flood, daemon=True).start()
"""
    session = trainer.open("strict")
    for _ in range(3):
        result = session.call(code)
        assert len(result.output) < 1000
        session = result.after
    trainer.is_unharmed()


def test_long_output_is_cut_in_the_middle_and_says_so(trainer: Trainer) -> None:
    output = trainer.run("print('a' * 9_000 + 'b' * 9_000)", "strict").output
    assert output == "a" * 200 + "\n[... 17600 characters cut ...]\n" + "b" * 200


def test_no_disk_is_filled(trainer: Trainer) -> None:
    code = """
import os
written = 0
for folder in ("/tmp", "/dev/shm", "/var/tmp", ".", os.path.dirname(os.__file__)):
    try:
        with open(folder + "/filler", "wb") as file:
            written += file.write(b"x" * (1 << 20))
    except OSError: pass
written
"""
    assert trainer.open().shows(code) == "0"
    trainer.is_unharmed()


def test_descriptors_run_out_alone(trainer: Trainer) -> None:
    code = "import os\nfds = []\ntry:\n    while True: fds += os.pipe()\nexcept OSError: pass\nlen(fds)"
    assert int(trainer.open().shows(code)) <= 64
    trainer.is_unharmed()


@pytest.mark.parametrize(
    "code",
    ["def f(): f()\nimport sys; sys.setrecursionlimit(10**8)\nf()", "(" * 50_000,
     "x = " + "-" * 300_000 + "1", "f'{" * 500 + "}'" * 500,
     "raise BaseExceptionGroup('x', [ValueError('y' * 10**6)] * 50)",
     "[" * 2000 + "]" * 2000, "class E(Exception):\n    def __str__(self): return 'z' * 10**8\nraise E"],
    ids=["recursion", "parentheses", "operators", "f-strings", "groups", "lists", "messages"],
)  # fmt: skip
def test_deep_and_long_programs_end(trainer: Trainer, code: str) -> None:
    result = trainer.run(code, "strict")
    assert result.status in STOPPED and len(result.output) < 1000
    trainer.is_unharmed()


def test_nothing_computes_between_calls(trainer: Trainer) -> None:
    """A thread, or a program that pretends to be done, would take the trainer's processor away."""
    thread = f"{BURN}\nthreading.Thread(target=burn, daemon=True).start()"
    pretence = """
import sys
frame = sys._getframe()
while "self" not in frame.f_locals:
    frame = frame.f_back
frame.f_locals["self"]._control.sendall(b"k1")
while True: pass
"""
    for code in (thread, pretence):
        session = trainer.open("strict").then(code)
        time.sleep(0.6)
        assert cpu_seconds(trainer) < 0.05
        session.call("1")
    trainer.is_unharmed()


def test_a_stopped_call_stops_computing(trainer: Trainer) -> None:
    trainer.run(
        f"{BURN}\n[threading.Thread(target=burn).start() for _ in range(8)]\nburn()",
        "strict",
    )
    assert cpu_seconds(trainer) < 0.05
