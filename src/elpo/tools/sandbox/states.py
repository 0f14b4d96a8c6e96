"""What a session's state is: the calls that led to it. Live processes are only a cache of states.

Reference semantics: run the recorded calls in a fresh interpreter. A process that has run exactly the calls
of a state can stand in for it. A cheap state's process simply moves on to the next state; if the old state is
called again, it is replayed. A state that would be expensive to replay keeps its process as a snapshot and
the call runs in a fork of it.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from dataclasses import replace

from elpo.tools.sandbox import interpreter
from elpo.tools.sandbox.connection import InterpreterLost
from elpo.tools.sandbox.live import LiveProcesses
from elpo.tools.sandbox.process import Limits, Process
from elpo.tools.sandbox.zygotes import ZygotePool
from elpo.types import ToolResult, ToolStatus

_SNAPSHOT_SECONDS = 0.02
"""Replay dearer than this is avoided by a fork, which costs 1 to 3 ms and some MB."""
_ATTEMPTS = 3
_REPLAY_PATIENCE = 3.0
"""A replayed call is known to end: it may take so many times as long as before, and a new call's time."""


class StateLost(Exception):
    """A recorded call does not end as it did before, so that its state cannot be had again."""

    def __init__(self, state: State, result: ToolResult) -> None:
        super().__init__(f"call {state.number} cannot be repeated: {result.output[-200:]}")
        self.state = state


class State:
    """The calls so far, as a linked list that branches share. Frozen but for its cached process."""

    __slots__ = ("__weakref__", "forkable", "lock", "number", "parent", "process", "result", "source")

    def __init__(self, parent: State | None, source: bytes, number: int, result: ToolResult | None) -> None:
        self.parent = parent
        self.source = source
        self.number = number  # 0 for the task's setup, else the place of this call in its session
        self.result = result  # None where nothing ran
        self.forkable = True  # until a fork of it failed
        self.process: Process | None = None
        self.lock = threading.Lock()  # held while the process is forked

    @property
    def seconds(self) -> float:
        """What running this call again costs."""
        return self.result.seconds if self.result is not None else 0.0

    def __del__(self) -> None:
        if self.process is not None:
            self.process.close()


class Interpreters:
    """Runs calls on states; thread-safe."""

    def __init__(self, pool: ZygotePool, limits: Limits, max_live: int) -> None:
        self._pool = pool
        self._limits = limits
        self._live = LiveProcesses(max_live)
        self._lock = threading.Lock()
        self._roots: weakref.WeakValueDictionary[str, State] = weakref.WeakValueDictionary()
        self._closed = False
        self.num_replay_mismatches = 0

    def root(self, setup: str) -> State:
        """The state before the first call; sessions with the same setup share it.

        Raises:
            ValueError: if the setup fails.
            RuntimeError: if no interpreter can be had.
        """
        with self._lock:
            state = self._roots.get(setup)
        if state is not None:
            return state
        if not setup:
            state = State(None, b"", 0, None)
        else:
            try:
                compiled = interpreter.dump_setup(setup)
            except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
                raise ValueError(f"the task's python_setup does not compile: {error}") from error
            result, state = self.call(None, compiled)
            if result.status is ToolStatus.INFRASTRUCTURE_FAULT:
                raise RuntimeError(result.output)
            if state is None or result.status is not ToolStatus.OK:
                raise ValueError(f"the task's python_setup failed:\n{result.output}")
        with self._lock:
            return self._roots.setdefault(setup, state)

    def call(self, state: State | None, source: bytes) -> tuple[ToolResult, State | None]:
        """Run `source` in `state` (None: nothing ran yet): the result, and the state after it.

        A call that had to be stopped leaves `state` as it was. Where `state` itself cannot be had again,
        because one of its calls does not repeat, that is the program's doing: an error, and the state before
        that call.
        """
        number = 0 if state is None else state.number + 1
        problem = ""
        for attempt in range(1, _ATTEMPTS + 1):
            if self._closed:
                problem = "the tool was closed"
                break
            try:
                process = self._pool.take() if state is None else self._checkout(state)
                completion = process.run(source, number, self._limits)
            except StateLost as lost:
                if lost.state.parent is None:  # the setup is trusted
                    problem = str(lost)
                    continue
                note = f"[{lost}; the interpreter is back in its state before that call]"
                return ToolResult(ToolStatus.PROGRAM_ERROR, note), lost.state.parent
            except InterpreterLost as error:
                problem = str(error)
                continue
            if not completion.began and attempt < _ATTEMPTS:  # somebody killed it; if not itself, once
                continue
            if not completion.alive:
                return completion.result, state
            after = State(state, source, number, completion.result)
            self._live.keep(after, process)
            return completion.result, after
        return ToolResult(ToolStatus.INFRASTRUCTURE_FAULT, f"[no Python interpreter: {problem}]"), state

    def close(self) -> None:
        """End every idle process. Safe to call twice."""
        self._closed = True
        self._live.close()

    def _checkout(self, state: State) -> Process:
        """A process in exactly this state that nobody else uses."""
        if not (state.forkable and self._replay_seconds(state) > _SNAPSHOT_SECONDS):
            return self._live.claim(state) or self._rebuild(state)
        with state.lock:
            process = self._live.claim(state) or self._rebuild(state)
            if not process.can_fork:
                return process
            return self._fork(state, process) or self._rebuild(state)

    def _fork(self, state: State, process: Process) -> Process | None:
        """A fork of the process, which stays with `state`; None where it would not, and is gone. Only if
        that was its own doing it is not asked again."""
        try:
            child = process.fork()
        except InterpreterLost:
            state.forkable = not process.origin.responds()
            process.close()
            return None
        self._live.keep(state, process)
        return child

    def _rebuild(self, state: State) -> Process:
        """Replay the calls of `state`: in a fork of the nearest snapshot, or from the start where that is
        cheap.

        Raises:
            StateLost: if a recorded call does not end any more.
            InterpreterLost: if no interpreter can be had.
        """
        dear = sum(step.seconds for step in _lineage(state)) > _SNAPSHOT_SECONDS
        path: list[State] = []
        process: Process | None = None
        step: State | None = state
        while step is not None and process is None:
            path.append(step)
            step = step.parent
            if dear and step is not None and step.forkable and step.process is not None:
                with step.lock:
                    snapshot = self._live.claim(step)
                    if snapshot is not None and snapshot.can_fork:
                        process = self._fork(step, snapshot)
                        dear = process is not None  # if one refuses, ask no other: the time is ours
                    elif snapshot is not None:
                        self._live.keep(step, snapshot)
        process = process or self._pool.take()
        try:
            for step in reversed(path):
                if step.result is not None:
                    self._replay(step, step.result, process)
        except (InterpreterLost, StateLost):
            process.close()
            raise
        return process

    def _replay(self, state: State, recorded: ToolResult, process: Process) -> None:
        patience = replace(
            self._limits,
            timeout=_REPLAY_PATIENCE * recorded.seconds + self._limits.timeout,
            cpu_seconds=_REPLAY_PATIENCE * self._limits.cpu_seconds,
        )
        completion = process.run(state.source, state.number, patience)
        if not completion.alive:
            raise StateLost(state, completion.result)
        if (completion.result.status, completion.result.output) != (recorded.status, recorded.output):
            with self._lock:
                self.num_replay_mismatches += 1
                first = self.num_replay_mismatches == 1
            if first:
                message = (
                    f"call {state.number} printed something else when it was replayed (time, addresses?)"
                )
                warnings.warn(message, RuntimeWarning, stacklevel=2)

    @staticmethod
    def _replay_seconds(state: State) -> float:
        """What rebuilding `state` costs, counted from the nearest snapshot above it."""
        seconds, step = state.seconds, state.parent
        while step is not None and step.process is None:
            seconds += step.seconds
            step = step.parent
        return seconds


def _lineage(state: State) -> list[State]:
    """`state` and everything it continues."""
    lineage: list[State] = []
    step: State | None = state
    while step is not None:
        lineage.append(step)
        step = step.parent
    return lineage
