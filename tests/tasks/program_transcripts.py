"""Program sessions executed for real, and the steps a rollout would record of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from elpo.types import Problem, Step

from .ledger_transcripts import executed

_COMMITS = "        self._call, "


class Session:
    """A problem's session by plain `exec`; every call becomes a step."""

    def __init__(self, problem: Problem) -> None:
        self.committed: list[Callable[[int], int]] = []  # the very functions that the session took
        self.namespace: dict[str, Any] = {"__name__": "__main__", "_committed": self.committed}
        setup = problem.metadata["python_setup"]
        assert setup.count(_COMMITS) == 1
        exec(setup.replace(_COMMITS, f"        _committed.append(line)\n{_COMMITS}"), self.namespace)
        self._program = self.namespace["f"]

    @property
    def value(self) -> Any:
        return self._program._value

    def call(self, code: str) -> Step:
        return executed(code, self.namespace)
