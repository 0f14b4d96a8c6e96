"""Conversations to imitate from a file or the hub: the format of Open-AgentRL-SFT-3K.

A row has `messages` (role, content, and for calls `tool_calls` as OpenAI writes them) and `tools`, the
schemas that were offered. Rows that cannot be used are listed, never crashed on. The policy is shown the
tools of this run, not those of the row: it must learn to call what it will have.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from elpo.tasks.rows import BadRow, read_rows


class Function(BaseModel):
    """The name of a tool and its arguments, which some write as JSON text."""

    name: str
    arguments: dict[str, Any] = {}

    @field_validator("arguments", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = json.loads(value)
        if isinstance(value, Mapping):  # a table has a column for every argument of any row
            return {key: item for key, item in value.items() if item is not None}
        return value


class Call(BaseModel):
    """One tool call of a turn."""

    function: Function


class Message(BaseModel):
    """One message; None stands for no text and no calls."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[Call] | None = None


class Conversation(BaseModel):
    """A row."""

    messages: list[Message] = Field(min_length=2)
    tools: Any = None

    @field_validator("messages", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value


def read_conversations(
    path: str, tool_names: Collection[str], renamed: Mapping[str, str], num: int
) -> tuple[list[dict[str, Any]], list[BadRow]]:
    """The first `num` usable conversations of the split "train", and the rows that were left out before.

    Args:
        path: as `elpo.tasks.rows.read_rows` takes it.
        tool_names: the tools of this run; a call of another one makes a row useless.
        renamed: names of tools in the data and what they are called here, such as code_interpreter: python.

    Raises:
        ValueError: the source cannot be read, or none of its rows can be used.
    """
    found: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    for place, row in read_rows(path, "train"):
        if len(found) == num:
            break
        usable = row if isinstance(row, BadRow) else _conversation(place, row, tool_names, renamed)
        if isinstance(usable, BadRow):
            bad.append(usable)
        else:
            found.append(usable)
    if not found:
        reason = f"; {bad[0].place}: {bad[0].reason}" if bad else ""
        raise ValueError(f"sft.path {path}: none of {len(bad)} rows can be used{reason}")
    return found, bad


def _conversation(
    place: str, row: Mapping[str, Any], tool_names: Collection[str], renamed: Mapping[str, str]
) -> dict[str, Any] | BadRow:
    try:
        conversation = Conversation.model_validate(row)
    except ValidationError as error:
        reasons = error.errors(include_input=False, include_url=False)
        return BadRow(place, "; ".join(f"{'.'.join(map(str, r['loc']))}: {r['msg']}" for r in reasons[:3]))
    messages = [_plain(message, renamed) for message in conversation.messages]
    reason = _useless(messages, tool_names)
    return BadRow(place, reason) if reason else {"messages": messages}


def _plain(message: Message, renamed: Mapping[str, str]) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.tool_calls:
        functions = [call.function for call in message.tool_calls]
        plain["tool_calls"] = [
            {"type": "function", "function": {"name": renamed.get(f.name, f.name), "arguments": f.arguments}}
            for f in functions
        ]
    return plain


def _useless(messages: Sequence[Mapping[str, Any]], tool_names: Collection[str]) -> str | None:
    """Why a conversation cannot be imitated, in one line; None where it can."""
    roles = [message["role"] for message in messages]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    if first in (0, len(roles)) or roles[first - 1] != "user":
        return "messages: no assistant turn follows a user message"
    for i, (before, role) in enumerate(zip(roles[first:], roles[first + 1 :], strict=False), first + 1):
        if {before, role} != {"assistant", "tool"}:
            return f"messages.{i}: {role} after {before}; turns and tool results must alternate"
    if roles[-1] != "assistant":
        return "messages: the last one is not the assistant's"
    for i, message in enumerate(messages):
        calls = message.get("tool_calls", ())
        if len(calls) > 1:
            return f"messages.{i}: {len(calls)} calls in one turn; one is run"
        for call in calls:
            if (name := call["function"]["name"]) not in tool_names:
                known = ", ".join(tool_names) or "no tools"
                return f"messages.{i}: calls {name!r}, this run has {known}; see sft.rename_tools"
    return None
