"""The chat protocol over token ids: prompts, assistant turns, tool feedback, and reading tool calls.

The model's own chat template decides every frame, the token that ends a turn, and how a call is written
(`elpo.rollout.tool_calls`). Pieces are tokenised one by one and concatenated, so what was sampled is never
tokenised again and text from a tool can never turn into a control token.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from elpo.rollout.tool_calls import FORMATS, MalformedCall
from elpo.types import ToolCall

_USER: Mapping[str, Any] = {"role": "user", "content": "x"}
_CODE = "CODE-PLACEHOLDER"
_TEXT = "TEXT-PLACEHOLDER"
_OUTPUT = 'OUTPUT "PLACEHOLDER"\n2'  # JSON writes it differently, so that one sees who encodes outputs

REMEMBERED = 1024
"""Tool outputs whose token ids are kept."""

DATE = "26 Jul 2024"
"""What Llama's templates say is today, their own default: a prompt must not depend on the day of the run."""


class Dialogue:
    """Turns messages into token ids for one tokenizer and one set of tools.

    `call_format` names the row of `elpo.rollout.tool_calls.FORMATS` that reads the template's own calls.
    """

    def __init__(self, tokenizer: Any, tool_schemas: Sequence[Mapping[str, Any]] = ()) -> None:
        """
        Raises:
            ValueError: the tokenizer has no chat template, or the template writes no end-of-turn token, no
                tool messages, or calls in no known format; the message says what to do.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template; use an instruction-tuned model's folder")
        self.tokenizer = tokenizer
        self._tools = [dict(schema) for schema in tool_schemas] or None
        self._end, self.end_id = self._find_end()
        self._opening = self._render([_USER], add_generation_prompt=True)
        self._feedback_frame, self._written = self._split_feedback()
        self.feedback_ids = lru_cache(REMEMBERED)(self._feedback_ids)
        self.call_format = self._find_call_format()

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Token ids of the conversation so far, ending where the assistant begins. int64 [P]."""
        return self._encode(self._render(messages, add_generation_prompt=True))

    def assistant_ids(self, message: Mapping[str, Any]) -> np.ndarray:
        """Token ids of an assistant turn as the policy would have sampled it, end-of-turn included."""
        return self._encode(self._turn_text(message))

    def _feedback_ids(self, output: str) -> np.ndarray:
        """Token ids from the end of an assistant turn, through the tool's output, to the next turn.

        Called as `feedback_ids`, which remembers: rollouts of one problem are often told the same.
        """
        before, after = self._feedback_frame
        ids = np.concatenate([before, self._encode(self._written(output), plain=True), after])
        ids.setflags(write=False)
        return ids

    def conversation_ids(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Token ids of a conversation that has tool messages, ending where the assistant begins. int64 [P].

        Like `prompt_ids`, but the tools' outputs are encoded one by one and as plain text, like
        `feedback_ids`.

        Raises:
            ValueError: the chat template does not render one of the tool messages as it is.
        """
        nonce = secrets.token_hex(8)
        outputs = [message["content"] for message in messages if message["role"] == "tool"]
        marks = [f"output-{nonce}-{i}-" for i in range(len(outputs))]
        waiting = iter(marks)
        rest = self._render(
            [{**m, "content": next(waiting)} if m["role"] == "tool" else m for m in messages],
            add_generation_prompt=True,
        )
        pieces = []
        for mark, output in zip(marks, outputs, strict=True):
            written = self._written(mark)
            if rest.count(written) != 1:
                raise ValueError("the chat template does not render this tool message")
            before, rest = rest.split(written)
            pieces += [self._encode(before), self._encode(self._written(output), plain=True)]
        return np.concatenate([*pieces, self._encode(rest)])

    def text(self, token_ids: np.ndarray) -> str:
        """The turn as text, call markers kept and the end-of-turn token dropped."""
        ids = token_ids[token_ids != self.end_id]
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=False))

    def tool_call(self, text: str) -> ToolCall | None:
        """The first call of an assistant turn, or None where the turn makes none.

        Raises:
            MalformedCall: the turn begins a call that cannot be read.
        """
        return FORMATS[self.call_format](text)

    # what the template does, found by rendering placeholders

    def _find_end(self) -> tuple[str, int]:
        """The special token that the template writes right after an assistant's text."""
        whole = self._render([_USER, {"role": "assistant", "content": _TEXT}])
        tail = whole.rpartition(_TEXT)[2].lstrip()
        first = self._encode(tail)[:1]
        special = {*self.tokenizer.all_special_ids, *getattr(self.tokenizer, "added_tokens_decoder", {})}
        if not len(first) or int(first[0]) not in special:
            raise ValueError(
                "the chat template writes no end-of-turn token after an assistant turn; use a template that "
                f"ends turns with a special token such as {self.tokenizer.eos_token or '<|im_end|>'!r}"
            )
        return str(self.tokenizer.decode(first.tolist(), skip_special_tokens=False)), int(first[0])

    def _split_feedback(self) -> tuple[tuple[np.ndarray, np.ndarray], Callable[[str], str]]:
        """What stands before and after a tool's output, and how the template writes the output itself."""
        feedback = {"role": "tool", "name": "python", "content": _OUTPUT}
        advice = "choose a chat template with tool support (instruction-tuned Qwen and Llama models have one)"
        try:
            whole = self._render([_USER, _call_message(), feedback], add_generation_prompt=True)
        except Exception as error:  # a template may raise whatever it likes
            raise ValueError(
                f"the chat template does not render tool messages ({error}); {advice}"
            ) from error
        rest = whole.rpartition(_CODE)[2].partition(self._end)[2]
        for written in (str, _as_json):
            before, found, after = rest.partition(written(_OUTPUT))
            if found and _OUTPUT not in after:
                return (self._encode(before), self._encode(after)), written
        raise ValueError(f"the chat template does not render tool messages; {advice}")

    def _find_call_format(self) -> str:
        """The format in which the template writes the call it is given."""
        turn = self._turn_text(_call_message())[: -len(self._end)]
        for name, parse in FORMATS.items():
            try:
                call = parse(turn)
            except MalformedCall:
                continue
            if call == ToolCall("python", {"code": _CODE}):
                return name
        raise ValueError(
            f"the chat template writes tool calls in a format that cannot be read, such as {turn!r:.200}; "
            f"the known ones are {', '.join(FORMATS)}: set the tokenizer's chat_template to one of those"
        )

    def _turn_text(self, message: Mapping[str, Any]) -> str:
        whole = self._render([_USER, message])
        if not whole.startswith(self._opening):
            raise ValueError("the chat template renders a finished turn unlike its generation prompt")
        turn = whole[len(self._opening) :]
        return turn[: turn.rindex(self._end) + len(self._end)]

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=self._tools,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                date_string=DATE,
            )
        )

    def _encode(self, text: str, plain: bool = False) -> np.ndarray:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
        return np.asarray(ids, dtype=np.int64)


def _call_message() -> dict[str, Any]:
    """A turn that calls a tool; without text, which Llama's template would not write beside a call."""
    call = {"type": "function", "function": {"name": "python", "arguments": {"code": _CODE}}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
