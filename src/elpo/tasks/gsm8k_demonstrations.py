"""GSM8K's worked solutions as conversations: every annotated calculation becomes a call of the Python tool.

A solution reads `48/2 = <<48/2=24>>24 clips`. The text up to the annotation is a turn that calls Python with
`48/2`, the feedback is what Python says, and the next turn goes on from there.
"""

from __future__ import annotations

import re
from typing import Any

from elpo.tasks.tool_turns import PYTHON_SCHEMA, tool_turn
from elpo.types import Problem

_ANNOTATION = re.compile(r"<<([^<>]*)=[^<>=]*>>")
_ARITHMETIC = re.compile(r"[\d+\-*/(). ]{1,100}")


def demonstrate(problem: Problem, solution: str) -> dict[str, Any] | None:
    """The conversation of one worked solution; None where an annotation is no plain calculation."""
    worked = solution.rpartition("####")[0]
    messages: list[Any] = [*problem.messages]
    parts = _ANNOTATION.split(worked)  # text, calculation, text, calculation, ..., text
    for text, calculation in zip(parts[::2], parts[1::2], strict=False):
        value = _value(calculation)
        if value is None:
            return None
        messages.append(tool_turn(text.strip(), "python", code=calculation.strip()))
        messages.append({"role": "tool", "name": "python", "content": value})
    answer = f"{parts[-1].strip()}\n\\boxed{{{problem.answer}}}"
    messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, "tools": [PYTHON_SCHEMA]}


def _value(calculation: str) -> str | None:
    """What Python prints for sums and products of numbers."""
    if not _ARITHMETIC.fullmatch(calculation) or "**" in calculation or "//" in calculation:
        return None
    try:
        return repr(eval(calculation.strip(), {"__builtins__": {}}))
    except (SyntaxError, ArithmeticError, TypeError):
        return None
