"""Isolation fails closed; the system call filters, run in a BPF interpreter. Attacks are in `escapes`."""

from __future__ import annotations

import errno
import os
import platform
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from elpo.tools.python import PythonTool
from elpo.tools.sandbox import seccomp
from elpo.types import ToolCall, ToolResult, ToolStatus
from tests.tools.python_calls import LINUX_ONLY, PROBLEM

pytestmark = LINUX_ONLY


@pytest.fixture(scope="module")
def tool() -> Iterator[PythonTool]:
    with PythonTool(state="session", num_workers=1, timeout=2.0, memory_mb=256) as tool:
        yield tool


def run(tool: PythonTool, code: str) -> ToolResult:
    return tool.open(PROBLEM).call(ToolCall("python", {"code": code}))[0]


def test_fork_is_refused_in_a_snapshot_too(tool: PythonTool) -> None:
    """The process that may be forked on request gets no further fork out of it."""
    if not tool.describe().fork_snapshots:
        pytest.skip("this host offers no seccomp notification")
    session = tool.open(PROBLEM).call(ToolCall("python", {"code": "import os, time\ntime.sleep(0.05)"}))[1]
    for _ in range(3):
        result, session = session.call(ToolCall("python", {"code": "time.sleep(0.03)\nos.fork()"}))
        assert "PermissionError" in result.output


def test_a_program_that_breaks_fork_still_has_a_state(tool: PythonTool) -> None:
    """A snapshot that cannot be made is not a fault: the state is replayed and the call runs in place."""
    code = "import os, time\ntime.sleep(0.05)\nos.fork = lambda: 0\nx = 5"
    session = tool.open(PROBLEM).call(ToolCall("python", {"code": code}))[1]
    result, _ = session.call(ToolCall("python", {"code": "x"}))
    assert (result.status, result.output) == (ToolStatus.OK, "5")


NO_SECCOMP = """
import errno, platform, struct
from elpo.tools.python import PythonTool
from elpo.tools.sandbox import isolation, seccomp

op = lambda code, value, if_true=0, if_false=0: struct.pack("HBBI", code, if_true, if_false, value)
number = {"x86_64": 317, "aarch64": 277}[platform.machine()]
program = op(0x20, 0) + op(0x15, number, 0, 1) + op(6, 0x50000 | errno.EINVAL) + op(6, 0x7FFF0000)
isolation.renounce_new_privileges()
seccomp.Filter(program).install()
PythonTool(state="session", num_workers=1)
"""
NO_LANDLOCK = """
from elpo.tools.sandbox import isolation, seccomp

isolation.renounce_new_privileges()
seccomp.Filter(seccomp.base_filter(deny_open=True)).install()
open("/dev/null")
"""


@pytest.mark.parametrize(
    ("program", "ending"),
    [(NO_SECCOMP, "RuntimeError: the Python sandbox did not start"), (NO_LANDLOCK, "FileNotFoundError")],
)
def test_a_missing_layer_fails_closed(program: str, ending: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ending in ended.stderr


def test_switching_isolation_off_is_loud() -> None:
    with pytest.warns(RuntimeWarning, match="WITHOUT isolation"):
        tool = PythonTool(state="session", num_workers=1, isolation="none_trusted_code_only")
    with tool:
        tool.self_test()
        assert "NONE" in str(tool.describe())
        assert run(tool, "open('/etc/passwd').readable()").output == "True"
        session = tool.open(PROBLEM).call(
            ToolCall("python", {"code": "import time; time.sleep(0.05); x = [1]"})
        )[1]
        for _ in range(2):
            assert session.call(ToolCall("python", {"code": "x.append(2); x"}))[0].output == "[1, 2]"


# --- the filters, on both architectures


def verdict(program: bytes, machine: str, number: int, *arguments: int) -> str:
    """What the kernel's BPF interpreter would return for one system call."""
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003}[machine]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", number, architecture, 0, *padded)
    instructions = list(struct.iter_unpack("HBBI", program))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = instructions[at]
        if code == 0x06:
            names = {0x7FFF0000: "allow", 0x80000000: "kill", 0x7FC00000: "notify"}
            return names.get(value) or errno.errorcode[value & 0xFFFF]
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
            at += 1
        else:
            if code == 0x54:
                accumulator &= value
                at += 1
                continue
            tests = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value != 0}
            at += 1 + (if_true if tests[code] else if_false)


NUMBERS = {  # from the kernel's tables, not from the module
    "x86_64": {
        "read": 0, "openat": 257, "socket": 41, "execve": 59, "ptrace": 101, "fcntl": 72, "clone": 56,
        "mmap": 9, "prlimit64": 302, "kill": 62, "clone3": 435, "seccomp": 317, "recvmsg": 47,
        "fchmodat": 268, "unlinkat": 263, "msgctl": 71, "flock": 73, "readlinkat": 267, "prctl": 157,
        "socketpair": 53, "ioctl": 16, "process_vm_readv": 310, "io_uring_setup": 425, "tgkill": 234,
    },
    "aarch64": {
        "read": 63, "openat": 56, "socket": 198, "execve": 221, "ptrace": 117, "fcntl": 25, "clone": 220,
        "mmap": 222, "prlimit64": 261, "kill": 129, "clone3": 435, "seccomp": 277, "recvmsg": 212,
        "fchmodat": 53, "unlinkat": 35, "msgctl": 187, "flock": 32, "readlinkat": 78, "prctl": 167,
        "socketpair": 199, "ioctl": 29, "process_vm_readv": 270, "io_uring_setup": 425, "tgkill": 131,
    },
}  # fmt: skip


@pytest.mark.parametrize("machine", NUMBERS)
def test_verdicts_of_the_filters(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    calls = NUMBERS[machine]
    base, closed = seccomp.base_filter(deny_open=False), seccomp.base_filter(deny_open=True)
    session = seccomp.session_filter(notify=True)
    for name in ("read", "openat", "mmap", "recvmsg", "seccomp"):
        assert verdict(base, machine, calls[name]) == "allow"
    refused = (
        "socket", "execve", "ptrace", "fchmodat", "unlinkat", "msgctl", "flock", "readlinkat", "tgkill",
        "process_vm_readv",
    )  # fmt: skip
    for name in refused:
        assert verdict(base, machine, calls[name]) == "EPERM"
    assert verdict(base, machine, calls["io_uring_setup"]) == "ENOSYS"
    assert verdict(base, machine, 403) == "EPERM"  # a call that nobody has listed
    stream, datagram = 1, 2
    assert verdict(base, machine, calls["socketpair"], 1, stream | 0x80000) == "allow"
    assert verdict(base, machine, calls["socketpair"], 1, datagram) == "EPERM"  # could send to a path
    assert verdict(base, machine, calls["socketpair"], 2, stream) == "EPERM"
    assert verdict(base, machine, calls["ioctl"], 0, 0x5421) == "allow"  # FIONBIO
    assert verdict(base, machine, calls["ioctl"], 0, 0x5412) == "EPERM"  # TIOCSTI
    assert verdict(base, machine, calls["fcntl"], 0, 1024) == "EPERM"  # F_SETLEASE
    assert verdict(base, machine, calls["fcntl"], 0, 6) == "EPERM"  # F_SETLK
    assert verdict(closed, machine, calls["openat"]) == "ENOENT"
    assert verdict(base, machine, calls["clone3"]) == "ENOSYS"
    assert verdict(base, machine, 463) == "ENOSYS"
    assert verdict(base, machine, 0x40000000 | 41) == "ENOSYS"
    assert verdict(base, "i386", calls["read"]) == "kill"
    assert verdict(base, machine, calls["fcntl"], 0, 8) == "EPERM"  # F_SETOWN
    assert verdict(base, machine, calls["fcntl"], 0, 1) == "allow"
    assert verdict(session, machine, calls["kill"]) == "EPERM"
    forked = 0x1200000 | int(signal.SIGCHLD)
    for flags in (int(signal.SIGCHLD), forked, 0x3D0F00):  # plain, as libc does it, a thread
        assert verdict(session, machine, calls["clone"], flags) == "notify"
    # a user namespace; with its parent's parent, memory, descriptors; a thread with its own descriptors
    for flags in (0x10000000, forked | 0x8000, forked | 0x100, forked | 0x400, 0x3D0F00 & ~0x400):
        assert verdict(session, machine, calls["clone"], flags) == "EPERM"
    alone = seccomp.session_filter(notify=False)
    assert verdict(alone, machine, calls["clone"], forked) == "EPERM"
    assert verdict(alone, machine, calls["clone"], 0x3D0F00) == "EAGAIN"
    assert verdict(session, machine, calls["seccomp"]) == "EPERM"
    assert verdict(session, machine, calls["prctl"], 15) == "allow"  # PR_SET_NAME
    assert verdict(session, machine, calls["prctl"], 1) == "EPERM"  # PR_SET_PDEATHSIG
    assert verdict(session, machine, calls["mmap"], 0, 4096, 3, 0x21) == "EPERM"  # MAP_SHARED
    assert verdict(session, machine, calls["mmap"], 0, 4096, 3, 0x22) == "allow"
    assert verdict(session, machine, calls["prlimit64"], 0, 0, 0, 1) == "allow"  # asking
    assert verdict(session, machine, calls["prlimit64"], 0, 0, 1 << 40, 0) == "EPERM"  # setting
    assert verdict(session, machine, calls["prlimit64"], 0, 0, 1, 0) == "EPERM"
