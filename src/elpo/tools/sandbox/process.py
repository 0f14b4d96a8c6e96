"""One live session process, seen from the trusted side: run a call under every limit, fork, kill."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from dataclasses import dataclass

from elpo.tools.sandbox import inspection, interpreter
from elpo.tools.sandbox.connection import Connection, InterpreterLost, Origin
from elpo.tools.sandbox.fork_gate import ForkGate
from elpo.tools.sandbox.output import cut_middle
from elpo.types import ToolResult, ToolStatus

_FORK_SECONDS = 3.0  # for the program's process to obey; replaying is the alternative
_QUICK_SECONDS = 0.01  # most calls end within; until then their output waits in the pipe, and wakes nobody
_MAX_OUTPUT_BYTES = 4 << 20
_NUM_CPUS = os.cpu_count() or 1
_ENDED = "the interpreter process exited or crashed"
_UNDONE = "the interpreter is back in its state before this call"


@dataclass(frozen=True)
class Limits:
    """What one call may use."""

    timeout: float  # seconds of wall clock
    cpu_seconds: float
    memory_mb: int  # added to the preloaded interpreter, for the whole session
    output_chars: int  # shown; the rest is cut from the middle


@dataclass(frozen=True)
class Completion:
    """How a call ended. Where not `alive` the process is gone, and with it whatever the call did.

    Where not `began` it had gone before it read the call: that may be repeated, or be its own doing.
    """

    result: ToolResult
    alive: bool
    began: bool = True


class Process:
    """Exclusive handle of one session process. Everything read from it is untrusted bytes.

    Starts as a connection without a process: `send_ends`, then `wait_ready`.
    """

    _closed = True  # until there is something to close

    def __init__(self, origin: Origin, gate: ForkGate | None = None) -> None:
        """Raises `InterpreterLost` where descriptors have run out."""
        self.origin = origin
        self.can_fork = origin.can_fork
        self._gate = gate
        self._pid = 0
        self._handle = -1  # pidfd, once ready
        self._idle_since = 0.0  # CPU seconds used when the last call ended
        self._quick, self._patient = select.poll(), select.poll()
        self._connection = Connection()
        self._control, self._output = self._connection.control, self._connection.output
        self._closed = False

    def send_ends(self, channel: socket.socket, message: bytes) -> None:
        """Ask whoever listens at `channel` for a process; `InterpreterLost` if nobody does."""
        self._connection.send_ends(channel, message)

    def wait_ready(self) -> None:
        """Wait until the process is locked down.

        Raises:
            InterpreterLost: if it ended first or did not answer in time.
        """
        if self._handle >= 0:
            return
        self._pid, self._handle, self._gate = self._connection.greet(self._gate)
        self.origin.members.add(self._pid)
        for poller in (self._quick, self._patient):
            poller.register(self._control, select.POLLIN)
            poller.register(self._handle, select.POLLIN)
            if self._gate is not None:
                poller.register(self._gate.listener, select.POLLIN)
        self._patient.register(self._output, select.POLLIN)

    def run(self, source: bytes, number: int, limits: Limits) -> Completion:
        """Run one call in place.

        Raises:
            InterpreterLost: if the process ended for reasons that are not the program's.
        """
        start = time.perf_counter()
        output = bytearray()
        status, note = self._drive(source, number, limits, start + limits.timeout, output)
        if note:
            self.close()
        else:
            self._rest()
        began = interpreter.BEGAN in output
        output = output.replace(interpreter.BEGAN, b"", 1)
        text = cut_middle(output.decode("utf-8", "replace").rstrip("\n"), limits.output_chars)
        if note:
            text = f"{text}\n[{note}; {_UNDONE}]".lstrip("\n")
        result = ToolResult(status, text, time.perf_counter() - start)
        return Completion(result, alive=not note, began=began or note is not _ENDED)

    def _drive(
        self, source: bytes, number: int, limits: Limits, deadline: float, output: bytearray
    ) -> tuple[ToolStatus, str]:
        """Send the call, keep the pipe empty, wait; the note says why the process must go, if it must."""
        memory = (ToolStatus.RESOURCE_LIMIT, f"memory limit of {limits.memory_mb} MB exceeded")
        flood = (ToolStatus.RESOURCE_LIMIT, f"more than {_MAX_OUTPUT_BYTES >> 20} MiB of output")
        started = time.perf_counter()
        try:
            if self._unasked():
                return ToolStatus.PROGRAM_ERROR, "the interpreter answered without being asked"
            cpu_limit = self._cpu_seconds() + limits.cpu_seconds
            if self._control.gettimeout() != (patience := max(0.01, limits.timeout)):
                self._control.settimeout(patience)
            self._control.sendall(interpreter.HEADER.pack(interpreter.RUN, number, len(source)) + source)
            reply = b""
            while len(reply) < interpreter.REPLY_SIZE:
                now = time.perf_counter()
                if now >= deadline:
                    self._drain(output)
                    return ToolStatus.TIMEOUT, f"timed out after {limits.timeout:g} s"
                if now - started < _QUICK_SECONDS:
                    events = self._quick.poll(1000 * min(_QUICK_SECONDS, deadline - now))
                else:
                    cpu_left = cpu_limit - self._cpu_seconds()
                    if cpu_left <= 0:
                        self._drain(output)
                        return ToolStatus.RESOURCE_LIMIT, f"CPU limit of {limits.cpu_seconds:g} s exceeded"
                    events = self._patient.poll(1000 * min(deadline - now, cpu_left / _NUM_CPUS) + 1)
                ready = dict(events)
                if self._output in ready and not self._drain(output):
                    return flood
                if self._gate is not None and self._gate.listener in ready:
                    self._gate.answer()
                if self._control.fileno() in ready:
                    part = self._control.recv(interpreter.REPLY_SIZE - len(reply))
                    if not part:
                        raise ConnectionError
                    reply += part
                elif self._handle in ready:
                    raise ConnectionError
        except TimeoutError:  # it does not read what it is asked
            self._drain(output)
            return ToolStatus.TIMEOUT, f"timed out after {limits.timeout:g} s"
        except OSError:  # connection closed, reset, or no such process any more
            if not self.origin.responds():
                self.close()
                raise InterpreterLost("the zygote ended during a call") from None
            self._drain(output)
            return ToolStatus.PROGRAM_ERROR, _ENDED
        if not self._drain(output):
            return flood
        status, self.can_fork = reply[:1], self.origin.can_fork and reply[1:] == b"1"
        endings = {
            interpreter.OK: (ToolStatus.OK, ""),
            interpreter.ERROR: (ToolStatus.PROGRAM_ERROR, ""),
            interpreter.MEMORY: memory,
        }
        return endings.get(status, (ToolStatus.PROGRAM_ERROR, "the interpreter gave a garbled reply"))

    def _drain(self, output: bytearray) -> bool:
        """Empty the pipe without waiting; False when there is more than any program may print."""
        while len(output) <= _MAX_OUTPUT_BYTES:
            try:
                data = os.read(self._output, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                with contextlib.suppress(
                    KeyError
                ):  # the program closed it: watched further, poll never sleeps
                    self._patient.unregister(self._output)
                return True
            output += data
        return False

    def _unasked(self) -> bool:
        """Whether a reply lies there before the question; nothing else may be sent on the connection."""
        return any(self._control.fileno() == ready for ready, _ in self._quick.poll(0)) and self.alive()

    def _cpu_seconds(self) -> float:
        return time.clock_gettime((~self._pid << 3) | 2)  # the kernel's clock of all threads of that process

    def _rest(self) -> None:
        """From now on the process has nothing to do; it may have ended already."""
        with contextlib.suppress(OSError):
            self._idle_since = self._cpu_seconds()

    def idle_seconds(self) -> float:
        """CPU seconds used since the last call ended; a process that nobody asked anything needs none."""
        try:
            return self._cpu_seconds() - self._idle_since
        except OSError:
            return 0.0

    def fork(self) -> Process:
        """A second process in this state; this one keeps it too.

        The program's code runs on both sides of the fork. So the child counts only if the kernel says that
        it is one thread and shares no open file; a child that does not show up is killed.

        Raises:
            InterpreterLost: if the process could not or would not fork.
        """
        child = Process(self.origin, self._gate)
        if self._gate is not None:
            self._gate.approve(self._pid)
        try:
            child.send_ends(self._control, interpreter.HEADER.pack(interpreter.FORK, 0, 0))
            self._await_child(child)
            child.wait_ready()
            if child._pid == self._pid:
                raise InterpreterLost("the interpreter only pretended to fork")
            self._check_child(child)
        except InterpreterLost:
            child.close()
            forked = self._gate is not None and not self._gate.withdraw(self._pid)
            if forked and child._pid in (0, self._pid):  # and does not say whom
                self._end()
                self.origin.kill_strays()
            raise
        self._rest()
        child._rest()
        return child

    def _await_child(self, child: Process) -> None:
        """Let the kernel fork, and wait for the child's first sign."""
        poller = select.poll()
        if self._gate is not None:
            poller.register(self._gate.listener, select.POLLIN)
        for source in (child._control, self._control, self._handle):
            poller.register(source, select.POLLIN)
        deadline = time.perf_counter() + _FORK_SECONDS
        while (left := deadline - time.perf_counter()) > 0:
            ready = dict(poller.poll(1000 * left))
            if child._control.fileno() in ready:
                return
            if self._gate is not None and self._gate.listener in ready:
                self._gate.answer()
            elif ready:
                break
        raise InterpreterLost("the interpreter refused to fork or ended")

    def _check_child(self, child: Process) -> None:
        if self._gate is None:  # isolation is switched off
            return
        deadline = time.perf_counter() + _FORK_SECONDS
        while True:
            shared = inspection.shared_files(self._pid, child._pid)
            if shared is None or shared - child._connection.far_files or time.perf_counter() > deadline:
                raise InterpreterLost("the fork of the interpreter shares files with it")
            if not shared:
                break
            time.sleep(0.0005)  # this process has not yet let go of what it handed to its child
        if inspection.num_threads(child._pid) != 1:
            raise InterpreterLost("the fork of the interpreter has other threads")

    def alive(self) -> bool:
        """False once the process has hung up."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        return not self._closed and not any(events & select.POLLHUP for _, events in poller.poll(0))

    def _end(self) -> None:
        """Kill the process and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        poller = select.poll()
        poller.register(self._handle, select.POLLIN)
        poller.poll(1000 * _FORK_SECONDS)

    def close(self) -> None:
        """Kill the process and free everything. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            os.close(self._handle)
            self.origin.members.discard(self._pid)
        self._connection.close()

    def __del__(self) -> None:
        self.close()
