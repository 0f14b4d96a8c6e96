"""A step of a trajectory as chat messages, and what its messages and calls say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from elpo.chat import RawCall
from elpo.rollout.tool_calls import CALL_CLOSE, CALL_OPEN
from elpo.types import MessageStep, Step, ToolCall


def turn_text(content: str, calls: Sequence[RawCall]) -> str:
    """A turn as one text, its calls in the Hermes syntax."""
    parts = [
        f'{CALL_OPEN}\n{{"name": {json.dumps(c.name)}, "arguments": {c.arguments}}}\n{CALL_CLOSE}'
        for c in calls
    ]
    return "\n".join(filter(None, [content, *parts]))


def messages_of(step: Step) -> Sequence[Mapping[str, Any]]:
    """A step as chat messages; those of a step with token ids are made from its text and call."""
    return step.messages if isinstance(step, MessageStep) else step_messages(step)


def step_messages(step: Step) -> list[Mapping[str, Any]]:
    """Messages that say what a step's text, call and result say."""
    message: dict[str, Any] = {"role": "assistant", "content": step.text}
    if step.tool_call is not None:
        arguments = json.dumps(dict(step.tool_call.arguments), ensure_ascii=False)
        function = {"name": step.tool_call.name, "arguments": arguments}
        message["content"] = step.text.partition(CALL_OPEN)[0].removesuffix("\n")
        message["tool_calls"] = [{"id": "call_0", "type": "function", "function": function}]
    if step.tool_result is None:
        return [message]
    return [message, {"role": "tool", "tool_call_id": "call_0", "content": step.tool_result.output}]


def calls_of(step: Step) -> list[ToolCall]:
    """Every call of a step that can be made again."""
    if not isinstance(step, MessageStep):
        return [] if step.tool_call is None else [step.tool_call]
    calls = []
    for message in step.messages:
        for call in message.get("tool_calls") or ():
            try:
                arguments = json.loads(call["function"]["arguments"] or "{}")
            except ValueError:
                continue
            if isinstance(arguments, dict):
                calls.append(ToolCall(call["function"]["name"], arguments))
    return calls or ([] if step.tool_call is None else [step.tool_call])


def recorded_outputs(step: Step) -> list[str]:
    """What the tools answered to a step's calls when it was drawn."""
    if isinstance(step, MessageStep):
        return [str(message["content"]) for message in step.messages if message["role"] == "tool"]
    return [] if step.tool_result is None else [step.tool_result.output]


def call_text(call: ToolCall) -> str:
    """For people: `name(argument)`; arguments keep their names where there are several."""
    if len(call.arguments) == 1:
        return f"{call.name}({next(iter(call.arguments.values()))})"
    return f"{call.name}({', '.join(f'{name}={value}' for name, value in call.arguments.items())})"
