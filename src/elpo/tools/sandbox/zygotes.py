"""Where session processes come from: preloaded zygotes, restarted when they die, and a few spares."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elpo.tools.sandbox import inspection
from elpo.tools.sandbox.connection import InterpreterLost
from elpo.tools.sandbox.process import Process
from elpo.tools.sandbox.zygote import PING

_END_SECONDS = 2.0
_ANSWER_SECONDS = 10.0
_START_SECONDS = 120.0  # importing large packages from a cold disk
_BOOTSTRAP = """
import sys, types
package = types.ModuleType("elpo_sandbox")
package.__path__ = [{directory!r}]
sys.modules["elpo_sandbox"] = package
from elpo_sandbox.zygote import main
main({descriptor})
"""


@dataclass(frozen=True)
class Isolation:
    """Which layers are in force around every call, as the zygote reported them."""

    seccomp: bool  # system calls filtered: no network, exec, signals, tracing
    landlock_abi: int  # 0: no Landlock; files are then hidden altogether where seccomp is on
    namespaces: tuple[str, ...]  # a bonus, where the host permits
    fork_snapshots: bool  # False: states are rebuilt by replay alone

    def __str__(self) -> str:
        if not self.seccomp:
            return "NONE: resource limits only, for trusted code"
        files = f"Landlock (ABI {self.landlock_abi})" if self.landlock_abi else "no file can be opened"
        spaces = f"namespaces ({', '.join(self.namespaces)})" if self.namespaces else "no namespaces"
        forks = "" if self.fork_snapshots else "; no fork snapshots"
        return f"resource limits, seccomp, {files}, {spaces}{forks}"


class Zygote:
    """One preloaded process that forks sessions. It inherits nothing from this process."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        bootstrap = _BOOTSTRAP.format(directory=str(Path(__file__).parent), descriptor=far.fileno())
        # not -I: it implies -E, which ignores PYTHONHASHSEED
        command = [sys.executable, "-S", "-s", "-P", "-B", "-X", "utf8", "-c", bootstrap]
        environment = {"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}
        environment |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
        self._process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=(far.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        far.close()
        self._control = near
        self._configuration = configuration
        self._lock, self._answer_lock = threading.Lock(), threading.Lock()
        self._closed = False
        self._pid = 0  # of the process that forks sessions, in our process namespace
        self.can_fork = False
        self.members: set[int] = set()
        near.send(json.dumps(dict(configuration)).encode())

    def wait_ready(self) -> Isolation:
        """Wait for the preloading and locking down, and tell what is in force.

        Raises:
            ValueError: if a module to preload does not exist.
            RuntimeError: with the zygote's own traceback if it failed otherwise.
        """
        self._control.settimeout(_START_SECONDS)
        try:
            answer, ancillary, _, _ = self._control.recvmsg(1 << 16, socket.CMSG_SPACE(12))
            self._pid = struct.unpack("3i", ancillary[0][2])[0] if ancillary else 0
        except OSError as error:
            answer = json.dumps({"error": f"no answer: {error}"}).encode()
        report = json.loads(answer or b'{"error": "it ended without an answer"}')
        if "error" in report:
            self.close()
            if "missing" in report:
                raise ValueError(
                    f"preload: no module named {report['missing']!r} here; install it or leave it out"
                )
            raise RuntimeError(f"the Python sandbox did not start: {report['error'].strip()}")
        self._control.settimeout(_ANSWER_SECONDS)
        self.can_fork = report["fork"]
        namespaces = tuple(report["namespaces"])
        return Isolation(report["seccomp"], report["landlock_abi"], namespaces, report["fork"])

    def spawn(self) -> Process:
        """Ask for a session process without waiting for it.

        Raises:
            InterpreterLost: if the zygote is gone.
        """
        process = Process(self)
        try:
            process.send_ends(self._control, b"s")
        except InterpreterLost:
            process.close()
            raise
        return process

    def alive(self) -> bool:
        """False if the zygote's end of the control socket is closed."""
        if self._closed:
            return False
        poller = select.poll()
        poller.register(self._control, 0)
        return not poller.poll(0)

    def responds(self) -> bool:
        """Whether the zygote still runs: one that was killed answers nothing, however late that is seen."""
        with self._answer_lock:
            try:
                self._control.send(PING)
                return self._control.recv(1) == PING
            except OSError:
                return False

    def kill_strays(self) -> None:
        """Kill processes that were left to the zygote by a parent that died and that nobody asked for.

        A session that is not ready yet may be hit too; whoever waits for it takes another.
        """
        strays = set(inspection.children(self._pid)) - self.members
        for stray in strays:
            with contextlib.suppress(OSError):
                os.kill(stray, signal.SIGKILL)
        deadline = time.monotonic() + _END_SECONDS
        while strays & set(inspection.children(self._pid)) and time.monotonic() < deadline:
            time.sleep(0.001)

    def close(self) -> None:
        """End the zygote and every session below it. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._control.close()
        try:
            self._process.wait(_END_SECONDS)  # it leaves when it sees the socket close
        except subprocess.TimeoutExpired:  # stopped, or stuck in an import
            os.killpg(self._process.pid, signal.SIGKILL)  # its own group, by start_new_session
            self._process.wait()


class ZygotePool:
    """Takes session processes from several zygotes; thread-safe."""

    def __init__(self, configuration: Mapping[str, Any], num_zygotes: int) -> None:
        self._configuration = configuration
        self._lock = threading.Lock()
        self._closed = False
        self._zygotes = [Zygote(configuration) for _ in range(num_zygotes)]
        self._turns = itertools.count()
        self._spares: collections.deque[Process] = collections.deque()
        self._num_spares = 2 * num_zygotes
        try:
            self.isolation, *_ = [zygote.wait_ready() for zygote in self._zygotes]
        except (RuntimeError, ValueError):
            self.close()
            raise
        self._refill()

    def take(self) -> Process:
        """A clean interpreter, ready to run.

        Raises:
            InterpreterLost: if none can be had, even from a restarted zygote.
        """
        while True:
            try:
                process, spare = self._spares.popleft(), True
            except IndexError:
                process, spare = self._spawn(), False
            try:
                process.wait_ready()
                if process.alive():
                    break
                raise InterpreterLost("a spare interpreter ended while it waited")
            except InterpreterLost:
                process.close()
                if not spare:
                    process.origin.close()  # it cannot deliver: the next attempt restarts it
                    raise
        self._refill()
        return process

    def _refill(self) -> None:
        with contextlib.suppress(InterpreterLost):  # whoever needs a process will find out, and say so
            while len(self._spares) < self._num_spares:
                self._spares.append(self._spawn())

    def _spawn(self) -> Process:
        index = next(self._turns) % len(self._zygotes)
        zygote = self._zygotes[index]
        if not zygote.alive():
            others = [other for other in self._zygotes if other.alive()]
            if not others:
                return self._restart(index).spawn()
            threading.Thread(target=self._restart_quietly, args=(index,), daemon=True).start()
            zygote = others[index % len(others)]
        return zygote.spawn()

    def _restart_quietly(self, index: int) -> None:
        with contextlib.suppress(InterpreterLost):  # whoever finds no other zygote alive will say so
            self._restart(index)

    def _restart(self, index: int) -> Zygote:
        with self._lock:
            if self._closed:
                raise InterpreterLost("the tool was closed")
            zygote = self._zygotes[index]
            if not zygote.alive():
                zygote.close()
                try:
                    replacement = Zygote(self._configuration)
                    replacement.wait_ready()
                except (OSError, RuntimeError, ValueError) as error:
                    raise InterpreterLost(f"a zygote died and cannot be restarted: {error}") from error
                zygote = self._zygotes[index] = replacement
        return zygote

    def close(self) -> None:
        """End every process. Safe to call twice."""
        with self._lock:
            self._closed = True
            while self._spares:
                self._spares.popleft().close()
            for zygote in self._zygotes:
                zygote.close()


def zygote_configuration(
    *, isolation: str, preload: Sequence[str], memory_mb: int, timeout: float, cpu_seconds: float
) -> dict[str, Any]:
    """What a zygote is told: imports, limits, and the directories Python itself reads.

    Installed packages are visible only if something outside the standard library is preloaded.
    """
    third_party = any(name.partition(".")[0] not in sys.stdlib_module_names for name in preload)
    site_directories = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    paths = sysconfig.get_paths()
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"]
    devices = ["/dev/urandom", "/dev/random", "/dev/zero", "/usr/share/zoneinfo"]
    return {
        "isolation": isolation,
        "preload": list(preload),
        "site_directories": site_directories if third_party else [],
        "readable": [paths["stdlib"], paths["platstdlib"], f"{sys.base_prefix}/lib", *libraries, *devices],
        "memory_mb": memory_mb,
        "process_cpu_seconds": 60 + int(10 * cpu_seconds),
        "orphan_seconds": 60 + int(4 * timeout),
    }
