"""A problem's Python set-up in this process, for demonstrations: it runs what the task itself has written."""

from __future__ import annotations

import traceback
from typing import Any

from elpo.tasks.tool_turns import tool_turn
from elpo.types import Problem


class SetupSession:
    """Answers as the Python tool's session does. Only for the task's own code: nothing isolates it."""

    def __init__(self, problem: Problem) -> None:
        self._namespace: dict[str, Any] = {"__name__": "__main__"}
        self._num_calls = 0
        exec(problem.metadata["python_setup"], self._namespace)

    def run(self, code: str) -> str:
        """What the policy is shown for an expression: its value, or the syntax error in it."""
        self._num_calls += 1
        try:
            program = compile(code, f"<call {self._num_calls}>", "eval")
        except SyntaxError as error:
            return "".join(traceback.format_exception_only(error)).rstrip("\n")
        return repr(eval(program, self._namespace))

    def turn(self, thought: str, code: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The messages of a call of `code` and of what it really gave."""
        result = {"role": "tool", "name": "python", "content": self.run(code)}
        return tool_turn(thought, "python", code=code), result
