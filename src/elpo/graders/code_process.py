"""A sandboxed process that runs `code_child` and tells messages behind a random tag."""

from __future__ import annotations

import json
import marshal
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from elpo.graders import code_child
from elpo.tools.sandbox.process import Limits, Process
from elpo.tools.sandbox.zygotes import ZygotePool
from elpo.types import ToolStatus

_CODE = compile(Path(code_child.__file__).read_text(), "<grader>", "exec", dont_inherit=True)
_BOOT = f"import marshal\nexec(marshal.loads({marshal.dumps(_CODE)!a}))"
"""Compiled here, once: the sandbox runs the same interpreter, and compiling costs more than forking."""

Messages = dict[int, list[Any]]


class Child:
    """One process, used until `close`; statements run in the namespace of `code_child`.

    Raises:
        InterpreterLost: here and in `run`, if the sandbox fails for reasons that are not the program's.
    """

    def __init__(self, pool: ZygotePool, limits: Limits) -> None:
        self.tag = secrets.token_hex(8)
        self._limits = limits
        self._process: Process | None = pool.take()
        self._num_runs = 0

    def run(self, statement: str, deadline: float | None = None) -> tuple[ToolStatus, str]:
        """Run trusted code; how it ended and everything that was written meanwhile, by whomever."""
        if self._process is None:
            return ToolStatus.PROGRAM_ERROR, ""
        limits = self._limits
        if deadline is not None:
            limits = replace(limits, timeout=max(0.0, min(limits.timeout, deadline - time.perf_counter())))
        source = statement if self._num_runs else f"{_BOOT}\n{statement}"
        self._num_runs += 1
        completion = self._process.run(source.encode(), self._num_runs, limits)
        if not completion.alive:
            self.close()
        return completion.result.status, completion.result.output

    def ask(self, statement: str, deadline: float | None = None) -> tuple[ToolStatus, Messages]:
        """Run trusted code and read the messages it told: `[number, *content]` each.

        A number told twice is worth nothing: somebody other than `code_child` wrote one of the two.
        """
        status, output = self.run(statement, deadline)
        messages: Messages = {}
        forged: set[int] = set()
        for line in output.split("\n"):
            if line.startswith(f"{self.tag} "):
                try:
                    number, *content = json.loads(line[len(self.tag) :])
                except (ValueError, TypeError, RecursionError):
                    continue  # cut off, or forged
                if not (type(number) is int and content):
                    continue
                if number in messages:
                    forged.add(number)
                messages[number] = content
        return status, {number: content for number, content in messages.items() if number not in forged}

    def close(self) -> None:
        """Kill the process. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
