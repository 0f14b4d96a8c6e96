"""Turns that call a tool: as demonstrations write them, and as the oracles of the tasks read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from elpo.types import Step, ToolStatus

PYTHON_SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Run Python code; variables are kept between calls.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string"}},
            "required": ["code"],
        },
    },
}

MAX_CODE_CHARS = 10_000
"""Longer calls are not read: they count as having spoilt what they work on."""


def tool_turn(thought: str, tool: str, **arguments: object) -> dict[str, Any]:
    """The assistant's message that says a thought and calls a tool."""
    function = {"name": tool, "arguments": arguments}
    calls = [{"type": "function", "function": function}]
    return {"role": "assistant", "content": thought, "tool_calls": calls}


def executed_python(steps: Sequence[Step]) -> Iterator[tuple[str, bool]]:
    """The code of every call of Python that ran to an end of its own, and whether it did so without an error.

    Reads `tool_call` and the status of `tool_result` only.
    """
    for step in steps:
        call, result = step.tool_call, step.tool_result
        if call is None or result is None or call.name != "python":
            continue
        code = call.arguments.get("code")
        if isinstance(code, str) and result.status in (ToolStatus.OK, ToolStatus.PROGRAM_ERROR):
            yield code, result.status is ToolStatus.OK
