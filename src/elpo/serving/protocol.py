"""The chat-completions API as this server speaks it: requests checked, responses built. No input or output.

What the API has and this server does not is refused by name, never ignored: a client that asks for a
penalty or a stop sequence must not believe it got one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from elpo.interfaces import Turn
from elpo.rollout.dialogue import Dialogue
from elpo.rollout.tool_calls import CALL_OPEN, MalformedCall, parse_tool_call

MAX_CHOICES = 64
MAX_TOP = 20

_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stop": ([],),
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that are accepted with the value (or null) that asks for nothing."""

_IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"}
)
"""Fields that say nothing about what is sampled."""


class BadRequest(ValueError):
    """A request that cannot be served; `param` and `code` are those of the API's error object."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ChatBody(BaseModel):
    """The fields of a request that decide what is sampled."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    tools: list[dict[str, Any]] = []
    tool_choice: Literal["auto", "none"] = "auto"
    parallel_tool_calls: bool = True  # one call a turn in either case
    temperature: Annotated[float, Field(ge=0)] = 1.0
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    max_completion_tokens: Annotated[int, Field(gt=0)] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] = 0

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            raise ValueError("the body is not a JSON object")
        return {
            key: value
            for key, value in body.items()
            if value is not None and key not in _IGNORED and value not in _WITHOUT_EFFECT.get(key, ())
        }

    @field_validator("messages")
    @classmethod
    def _normal_messages(cls, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [_normal_message(number, message) for number, message in enumerate(messages)]

    @model_validator(mode="after")
    def _top_of_something(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self

    @property
    def token_limit(self) -> int | None:
        """Tokens a choice may have; None where the request does not say."""
        return self.max_completion_tokens or self.max_tokens


def read_request(body: bytes) -> ChatBody:
    """The request in a body.

    Raises:
        BadRequest: it is not JSON, or a field of it is wrong or not served.
    """
    try:
        return ChatBody.model_validate(json.loads(body))
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"])) or None
        if first["type"] == "extra_forbidden":
            raise BadRequest(f"this server has no {param}; leave it out", param, "unsupported") from None
        raise BadRequest(f"{param or 'body'}: {first['msg'].removeprefix('Value error, ')}", param) from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def _normal_message(number: int, message: dict[str, Any]) -> dict[str, Any]:
    """A message as chat templates want it: content a string, arguments of calls an object."""
    role = {"developer": "system"}.get(message.get("role", ""), message.get("role"))
    if role not in ("system", "user", "assistant", "tool"):
        raise ValueError(f"message {number} has the role {role!r}; use system, user, assistant or tool")
    kept: dict[str, Any] = {"role": role, "content": _text(number, message.get("content"))}
    if name := message.get("name"):
        kept["name"] = name
    calls = message.get("tool_calls") or []
    if calls and role != "assistant":
        raise ValueError(f"message {number} is of role {role} and has tool calls")
    if calls:
        kept["tool_calls"] = [_normal_call(number, call) for call in calls]
    return kept


def _text(number: int, content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"message {number} has content that is not text")
    return content


def _normal_call(number: int, call: Any) -> dict[str, Any]:
    try:
        function = call["function"]
        name, arguments = function["name"], function["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"message {number} has a malformed tool call: {error}") from None
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def choice(
    index: int, turn: Turn, dialogue: Dialogue, tools: Sequence[Mapping[str, Any]], logprobs: bool
) -> dict[str, Any]:
    """One choice of a response. A well-formed call becomes `tool_calls`; any other text stays content."""
    text = dialogue.text(turn.token_ids)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    finish = "stop" if turn.ended else "length"
    try:
        call = parse_tool_call(text) if turn.ended and tools else None
    except MalformedCall:
        call = None
    if call is not None:
        finish = "tool_calls"
        before = text.partition(CALL_OPEN)[0].removesuffix("\n")
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
        function = {"name": call.name, "arguments": arguments}
        message["content"] = before or None
        message["tool_calls"] = [{"id": f"call_{index}", "type": "function", "function": function}]
    content = _logprobs(turn, dialogue) if logprobs else None
    return {
        "index": index,
        "message": message,
        "finish_reason": finish,
        "logprobs": None if content is None else {"content": content, "refusal": None},
    }


def _logprobs(turn: Turn, dialogue: Dialogue) -> list[dict[str, Any]]:
    """Of every token but the end of the turn: its log-probability at the sampling temperature."""
    entries = []
    for i, token in enumerate(turn.token_ids.tolist()):
        if token == dialogue.end_id:
            continue
        top = []
        if turn.top_ids is not None and turn.top_logprobs is not None:
            top = [
                _token(dialogue, *pair) for pair in zip(turn.top_ids[i], turn.top_logprobs[i], strict=True)
            ]
        entries.append({**_token(dialogue, token, turn.logprobs[i]), "top_logprobs": top})
    return entries


def _token(dialogue: Dialogue, token: int, logprob: float) -> dict[str, Any]:
    text = str(dialogue.tokenizer.decode([int(token)], skip_special_tokens=False))
    known = None if "\ufffd" in text else list(text.encode())  # a piece of a character has no text
    return {"token": text, "logprob": float(logprob), "bytes": known}


def response(
    name: str, model: str, created: int, prompt_tokens: int, turns: Sequence[Turn], choices: Sequence[Any]
) -> dict[str, Any]:
    """The `chat.completion` object."""
    completion_tokens = sum(len(turn.token_ids) for turn in turns)
    return {
        "id": name,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": list(choices),
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
