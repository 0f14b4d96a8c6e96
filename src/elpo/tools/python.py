"""The Python tool: runs the policy's code, each call afresh or in a session that can be branched.

    tool = PythonTool(state="session")
    start = tool.open(problem)
    result, session = start.call(ToolCall("python", {"code": "x = 6 * 7"}))
    result, left = session.call(ToolCall("python", {"code": "x += 1; x"}))   # 43
    result, right = session.call(ToolCall("python", {"code": "x"}))          # 42: another branch

With the default, `state="none"`, every call starts from the state `open` returned: nothing persists.
Code is untrusted: it runs in a locked-down process of its own (`elpo.tools.sandbox` says against what).
Needs Linux 5.3 or later on x86_64 or aarch64; on macOS and Windows a Linux container or virtual machine.
"""

from __future__ import annotations

import os
import resource
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from elpo.tools.sandbox.process import Limits
from elpo.tools.sandbox.states import Interpreters, State
from elpo.tools.sandbox.zygotes import Isolation, ZygotePool, zygote_configuration
from elpo.types import Problem, ToolCall, ToolResult, ToolStatus

DEFAULT_PRELOAD = (
    "math", "fractions", "itertools", "collections", "random", "json", "re", "statistics", "decimal",
    "datetime", "functools",
)  # fmt: skip
_MAX_CODE_BYTES = 1 << 20
_TRUSTED_ONLY = "none_trusted_code_only"
_MALFORMED = 'The tool takes one argument, "code", a string of Python such as {{"code": "1 + 1"}}; {problem}.'


class PythonTool:
    """Runs the policy's Python calls; implements `elpo.interfaces.Tool`. Thread-safe.

    A call's output is what it printed (stdout and stderr), then the value of a trailing expression as a REPL
    shows it, or a traceback of the program's own frames. The state keeps what ran before an exception; a call
    that is stopped (time, memory, output, a crash) changes nothing. `problem.metadata["python_setup"]` is
    trusted code that runs first and is not a call.

    Sessions start alike (hash seed and `random` are fixed), so a state is determined by its calls unless they
    ask for the time, addresses or entropy; `num_replay_mismatches` counts the times that showed. There is no
    writable file, no network and no second process. Packages outside the standard library exist only if one
    is preloaded.

    A fault of the sandbox itself (a zygote that died, a host out of descriptors) is tried again, up to three
    times in all and on a fresh zygote, before a call is answered with `INFRASTRUCTURE_FAULT`.

    Args:
        name: What the policy calls the tool.
        state: "none": calls know nothing of each other, the field's convention. "session": variables,
            functions and imports persist from call to call of a rollout, and are what a branch starts from.
        timeout: Wall-clock seconds for one call.
        cpu_seconds: CPU seconds for one call, over all its threads; default twice `timeout`.
        memory_mb: Address space a session may add to the preloaded interpreter, in MB.
        output_chars: Characters of output shown; the middle of longer output is cut, and that is stated.
        num_workers: Zygotes that sessions are forked from; default the number of CPUs, at most 4.
        preload: Modules imported before any session exists, so that importing them costs nothing.
        max_live: Idle processes kept, at most an eighth of the open-file limit; other states are replayed.
        isolation: "auto" uses every layer the host permits and refuses to run without seccomp;
            "none_trusted_code_only" switches isolation off.

    Raises:
        ValueError: for an option out of range or a module that cannot be preloaded.
        RuntimeError: if the host offers no isolation, or the sandbox does not start.
    """

    schema: Mapping[str, Any]

    def __init__(
        self,
        name: str = "python",
        *,
        state: Literal["none", "session"] = "none",
        timeout: float = 5.0,
        cpu_seconds: float | None = None,
        memory_mb: int = 2048,
        output_chars: int = 4000,
        num_workers: int | None = None,
        preload: Sequence[str] = DEFAULT_PRELOAD,
        max_live: int = 128,
        isolation: Literal["auto", "none_trusted_code_only"] = "auto",
    ) -> None:
        cpu_seconds = 2 * timeout if cpu_seconds is None else cpu_seconds
        num_workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
        lower_bounds = {
            "timeout": (timeout, 0.01),
            "cpu_seconds": (cpu_seconds, 0.01),
            "memory_mb": (memory_mb, 16),
            "output_chars": (output_chars, 80),
            "num_workers": (num_workers, 1),
            "max_live": (max_live, 1),
        }
        for option, (value, least) in lower_bounds.items():
            if not value >= least:
                raise ValueError(f"{option}={value!r}: must be at least {least}")
        if state not in ("none", "session"):
            raise ValueError(f"state={state!r}: choose 'none' or 'session'")
        if isolation not in ("auto", _TRUSTED_ONLY):
            raise ValueError(f"isolation={isolation!r}: choose 'auto' or {_TRUSTED_ONLY!r}")
        if isinstance(preload, str) or not all(_is_module_name(module) for module in preload):
            raise ValueError(
                f"preload={preload!r}: give a sequence of module names, such as ('math', 'numpy')"
            )
        if not sys.platform.startswith("linux"):
            raise RuntimeError(
                f"the Python tool needs Linux, not {sys.platform}: nothing here could isolate what it runs. "
                "Run elpo in a Linux container or virtual machine"
            )
        if isolation == _TRUSTED_ONLY:
            message = (
                "PythonTool runs WITHOUT isolation: what the policy writes can read, delete and send files"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        self.name = name
        self.state = state
        self.schema = _schema(name, state, preload, timeout)
        self._closed = False
        limits = Limits(timeout, cpu_seconds, memory_mb, output_chars)
        configuration = zygote_configuration(
            isolation=isolation,
            preload=preload,
            memory_mb=memory_mb,
            timeout=timeout,
            cpu_seconds=cpu_seconds,
        )
        self._pool = ZygotePool(configuration, num_workers)
        max_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if max_files != resource.RLIM_INFINITY:
            max_live = min(max_live, max(1, max_files // 8))
        self._interpreters = Interpreters(self._pool, limits, max_live)

    def open(self, problem: Problem) -> PythonSession:
        """The state after the problem's setup.

        Raises:
            ValueError: if the setup is not a string or fails.
            RuntimeError: if the tool is closed or no interpreter can be had.
        """
        if self._closed:
            raise RuntimeError("the Python tool is closed: make a new one")
        setup = problem.metadata.get("python_setup", "")
        if not isinstance(setup, str):
            kind = type(setup).__name__
            raise ValueError(f"problem {problem.id!r}: python_setup must be a string, not {kind}")
        return PythonSession(self._interpreters, self._interpreters.root(setup), self.state == "session")

    def close(self) -> None:
        """End every process. Calls still running or made later answer with a fault. Safe to call twice."""
        self._closed = True
        self._interpreters.close()
        self._pool.close()

    def describe(self) -> Isolation:
        """Which isolation layers are in force; `str()` of it is a line for a log."""
        return self._pool.isolation

    @property
    def num_replay_mismatches(self) -> int:
        """Replayed calls whose output differed from the recorded one."""
        return self._interpreters.num_replay_mismatches

    def self_test(self) -> None:
        """Check that calls work, branch, and cannot reach outside.

        Raises:
            RuntimeError: naming the check that failed and what was answered.
        """
        expected = [("state = [41]", ""), ("state.append(1); sum(state)", "42"), ("sum(state)", "41")]
        if self.state == "none":
            expected = [("state = [41]; sum(state)", "41"), ("'state' in globals()", "False")]
        if self.describe().seccomp:
            attempts = ("import socket; socket.socket()", "open('/etc/passwd')", "import os; os.fork()")
            template = "try:\n    {}\n    print('allowed')\nexcept OSError:\n    print('refused')"
            expected += [(template.format(attempt), "refused") for attempt in attempts]
        session = self.open(Problem("self-test", (), ""))
        for number, (code, answer) in enumerate(expected):
            result, after = session.call(ToolCall(self.name, {"code": code}))
            if (result.status, result.output) != (ToolStatus.OK, answer):
                raise RuntimeError(f"Python tool self-test: {code!r} gave {result}, expected {answer!r}")
            session = after if number == 0 else session  # every later call branches from the first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PythonSession:
    """An immutable state of the interpreter, made by `PythonTool.open`; an `elpo.interfaces.ToolSession`."""

    def __init__(self, interpreters: Interpreters, state: State, moves_on: bool) -> None:
        """Calls lead to another state only where the session `moves_on`."""
        self._interpreters = interpreters
        self._state: State | None = state
        self._moves_on = moves_on

    def call(self, call: ToolCall) -> tuple[ToolResult, PythonSession]:
        """Run `call.arguments["code"]` in this state; calling twice branches. Never raises for what it is
        given.

        Returns:
            The result and the state after it: this one, as a session of its own, if the call was malformed
            or had to be stopped.
        """
        state = self._state
        if state is None:
            return ToolResult(ToolStatus.INFRASTRUCTURE_FAULT, "[this session was closed]"), self
        code = call.arguments.get("code") if isinstance(call.arguments, Mapping) else None
        problem = _code_problem(code)
        if problem:
            result = ToolResult(ToolStatus.MALFORMED_CALL, _MALFORMED.format(problem=problem))
            return result, PythonSession(self._interpreters, state, self._moves_on)
        assert isinstance(code, str)
        result, after = self._interpreters.call(state, code.encode())
        following = after if after is not None and self._moves_on else state
        return result, PythonSession(self._interpreters, following, self._moves_on)

    def close(self) -> None:
        """Free what only this state holds. Safe to call twice; states that continue it live on."""
        self._state = None


def _code_problem(code: object) -> str:
    """Why `code` cannot be sent to an interpreter; empty if it can."""
    if code is None:
        return '"code" is missing'
    if not isinstance(code, str):
        return f'"code" is of type {type(code).__name__}'
    try:
        size = len(code.encode())
    except UnicodeEncodeError:
        return '"code" is not valid Unicode'
    return "" if size <= _MAX_CODE_BYTES else f'"code" has {size} bytes, more than {_MAX_CODE_BYTES}'


def _is_module_name(name: object) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


def _schema(name: str, state: str, preload: Sequence[str], timeout: float) -> Mapping[str, Any]:
    packages = sorted({module.partition(".")[0] for module in preload} - set(sys.stdlib_module_names))
    available = f", {', '.join(packages)}" if packages else ""
    kind = {
        "session": "in a stateful interpreter: variables, functions and imports persist between calls",
        "none": "in a fresh interpreter: nothing persists between calls",
    }[state]
    description = (
        f"Run Python code {kind}. Returns what was printed and the value of a trailing expression. "
        f"Available: the standard library{available}. No files, no network, at most {timeout:g} s per call."
    )
    code = {"type": "string", "description": "The Python code to run."}
    parameters = {"type": "object", "properties": {"code": code}, "required": ["code"]}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}
