"""The chat protocol over token ids: prompts, assistant turns, tool feedback, and reading tool calls.

The model's own chat template decides every frame; only the Hermes call syntax
(`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Qwen models speak it) is fixed here.
Pieces are tokenised one by one and concatenated, so what was sampled is never tokenised again and text
from a tool can never turn into a control token.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elpo.types import ToolCall

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"

_USER: Mapping[str, Any] = {"role": "user", "content": "x"}
_CONTENT = "CONTENT-PLACEHOLDER"


class MalformedCall(ValueError):
    """Text that tried to be a tool call and is none; the message is shown to the policy."""


def parse_tool_call(text: str) -> ToolCall | None:
    """The first tool call of an assistant turn, or None where the turn makes none.

    One call is executed per turn, the convention of the field (DemyAgent's `max_parallel_calls = 1`);
    text after it is ignored.

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
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise MalformedCall('the call needs a "name"')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        raise MalformedCall('"arguments" must be an object')
    return ToolCall(call["name"], arguments)


class Dialogue:
    """Turns messages into token ids for one tokenizer and one set of tools."""

    def __init__(self, tokenizer: Any, tool_schemas: Sequence[Mapping[str, Any]] = ()) -> None:
        """
        Raises:
            ValueError: the tokenizer has no chat template or no end-of-turn token, or the template
                does not render tool messages.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template; use an instruction-tuned model's folder")
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-turn (eos) token")
        self.tokenizer = tokenizer
        self.end_id: int = tokenizer.eos_token_id
        self._tools = [dict(schema) for schema in tool_schemas] or None
        self._opening = self._render([_USER], add_generation_prompt=True)
        self._feedback_frame = self._split_feedback()

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Token ids of the conversation so far, ending where the assistant begins. int64 [P]."""
        return self._encode(self._render(messages, add_generation_prompt=True))

    def assistant_ids(self, message: Mapping[str, Any]) -> np.ndarray:
        """Token ids of an assistant turn as the policy would have sampled it, end-of-turn included."""
        whole = self._render([_USER, message])
        if not whole.startswith(self._opening):
            raise ValueError("the chat template renders a finished turn unlike its generation prompt")
        return self._encode(self._until_end(whole)[len(self._opening) :])

    def feedback_ids(self, output: str) -> np.ndarray:
        """Token ids from the end of an assistant turn, through the tool's output, to the next turn."""
        before, after = self._feedback_frame
        return np.concatenate([before, self._encode(output, plain=True), after])

    def conversation_ids(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Token ids of a conversation that has tool messages, ending where the assistant begins. int64 [P].

        Like `prompt_ids`, but the tools' outputs are encoded one by one and as plain text, like
        `feedback_ids`.

        Raises:
            ValueError: the chat template does not render one of the tool messages as it is.
        """
        nonce = secrets.token_hex(8)
        outputs = [message["content"] for message in messages if message["role"] == "tool"]
        marks = [f"{_CONTENT}-{nonce}-{i}-" for i in range(len(outputs))]
        waiting = iter(marks)
        rest = self._render(
            [{**m, "content": next(waiting)} if m["role"] == "tool" else m for m in messages],
            add_generation_prompt=True,
        )
        pieces = []
        for mark, output in zip(marks, outputs, strict=True):
            if rest.count(mark) != 1:
                raise ValueError("the chat template does not render this tool message")
            before, rest = rest.split(mark)
            pieces += [self._encode(before), self._encode(output, plain=True)]
        return np.concatenate([*pieces, self._encode(rest)])

    def text(self, token_ids: np.ndarray) -> str:
        """The turn as text, call markers kept and the end-of-turn token dropped."""
        ids = [int(i) for i in token_ids if i != self.end_id]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def _split_feedback(self) -> tuple[np.ndarray, np.ndarray]:
        call = {"type": "function", "function": {"name": "tool", "arguments": {}}}
        turn = [_USER, {"role": "assistant", "content": "y", "tool_calls": [call]}]
        feedback = {"role": "tool", "name": "tool", "content": _CONTENT}
        opening = self._until_end(self._render(turn))
        whole = self._render([*turn, feedback], add_generation_prompt=True)
        if not whole.startswith(opening) or whole.count(_CONTENT) != 1:
            raise ValueError("the chat template does not render tool messages; choose one with tool support")
        before, after = whole[len(opening) :].split(_CONTENT)
        return self._encode(before), self._encode(after)

    def _until_end(self, rendered: str) -> str:
        end = self.tokenizer.eos_token
        position = rendered.rfind(end)
        if position < 0:
            raise ValueError(f"the chat template never writes the end-of-turn token {end!r}")
        return rendered[: position + len(end)]

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=self._tools,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        )

    def _encode(self, text: str, plain: bool = False) -> np.ndarray:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
        return np.asarray(ids, dtype=np.int64)
