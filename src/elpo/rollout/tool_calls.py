"""How a tool call is written, by family of models, and reading one.

- hermes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` somewhere in the turn (Qwen2.5, Qwen3)
- llama: the turn is `{"name": ..., "parameters": {...}}`, perhaps after `<|python_tag|>` (Llama 3.1 to 3.3)

One call is executed per turn, the convention of the field (DemyAgent's `max_parallel_calls = 1`); text after
it is ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from elpo.types import ToolCall

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"

PYTHON_TAG = "<|python_tag|>"
_LLAMA_CALL = re.compile(r'\s*\{\s*"(?:name|type|function|parameters)"\s*:')


class MalformedCall(ValueError):
    """Text that tried to be a tool call and is none; the message is shown to the policy."""


def parse_tool_call(text: str) -> ToolCall | None:
    """The first Hermes call of an assistant turn, or None where the turn makes none.

    Raises:
        MalformedCall: the turn opens a call that is not closed, not JSON, or not a name with arguments.
    """
    _, opened, rest = text.partition(CALL_OPEN)
    if not opened:
        return None
    body, closed, _ = rest.partition(CALL_CLOSE)
    if not closed:
        raise MalformedCall(f"{CALL_OPEN} is never closed by {CALL_CLOSE}")
    try:
        call = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedCall(f"the call is not valid JSON: {error}") from None
    return _call(call, "arguments")


def parse_llama_call(text: str) -> ToolCall | None:
    """The call that a Llama 3 turn is, or None where it is none: such a turn begins with the call's JSON.

    Raises:
        MalformedCall: as `parse_tool_call`.
    """
    _, tagged, rest = text.partition(PYTHON_TAG)
    body = (rest if tagged else text).lstrip()
    if not tagged and not _LLAMA_CALL.match(body):
        return None
    try:
        call, _ = json.JSONDecoder().raw_decode(body)
    except (ValueError, RecursionError) as error:
        raise MalformedCall(f"the call is not valid JSON: {error}") from None
    return _call(call, "parameters")


FORMATS: Mapping[str, Callable[[str], ToolCall | None]] = {
    "hermes": parse_tool_call,
    "llama": parse_llama_call,
}


def _call(call: Any, key: str) -> ToolCall:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise MalformedCall('the call needs a "name"')
    arguments = call.get(key, {})
    if not isinstance(arguments, dict):
        raise MalformedCall(f'"{key}" must be an object')
    return ToolCall(call["name"], arguments)
