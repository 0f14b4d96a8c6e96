"""Ledger sessions executed for real, and the steps a rollout would record of them."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from elpo.types import Problem, Step, ToolCall, ToolResult, ToolStatus


def step(text: str, call: ToolCall | None = None, result: ToolResult | None = None) -> Step:
    nothing = np.zeros(0, np.float32)
    return Step(nothing.astype(np.int64), nothing.astype(bool), nothing, nothing, text, call, result)


def answer(count: object) -> Step:
    return step(f"\\boxed{{{count}}}")


def executed(code: str, namespace: dict[str, Any]) -> Step:
    """A call by plain `exec`, as a step with the status it really had."""
    output, status = io.StringIO(), ToolStatus.OK
    with contextlib.redirect_stdout(output):
        try:
            exec(compile(code, "<call>", "exec"), namespace)
        except Exception as error:
            status = ToolStatus.PROGRAM_ERROR
            print(error)
    return step(code, ToolCall("python", {"code": code}), ToolResult(status, output.getvalue()))


class Ink:
    """A symbolic count that remembers which operations made it: what the book really contains."""

    def __init__(self, written: tuple[tuple[str, int], ...] = ()) -> None:
        self.written = written

    def __add__(self, amount: int) -> Ink:
        return Ink((*self.written, ("add", amount)))

    def __sub__(self, amount: int) -> Ink:
        return Ink((*self.written, ("sub", amount)))

    def __mul__(self, amount: int) -> Ink:
        return Ink((*self.written, ("mul", amount)))


class Session:
    """A problem's session by plain `exec`; every call becomes a step."""

    def __init__(self, problem: Problem, symbolic: bool = False) -> None:
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(problem.metadata["python_setup"], self.namespace)
        if symbolic:
            self.namespace["book"]._count = Ink()
        self._book = self.namespace["book"]

    @property
    def count(self) -> Any:
        return self._book._count

    def call(self, code: str) -> Step:
        return executed(code, self.namespace)
