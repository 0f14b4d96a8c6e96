"""A client of OpenAI-compatible chat-completions endpoints, for endpoints as they really are.

A request is tried again, after a growing pause, when the connection fails or drops, no answer comes in time,
the server is busy (429, whose Retry-After is obeyed) or fails (5xx), or the answer is not what the API
promises. What still has no answer then is an infrastructure fault. A request that is wrong by itself is not
tried again.
"""

from __future__ import annotations

import email.utils
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elpo.chat import ChatRequest, Completion, ContextTooLong, RawCall
from elpo.http_post import Address, NoAnswer, Response, post
from elpo.interfaces import InfrastructureFault

EXAMPLE = "http://127.0.0.1:8000/v1"
OPTIONAL = ("seed", "temperature", "max_tokens", "parallel_tool_calls")
MAX_PAUSE = 60.0
_BUSY = (408, 409, 425, 429)  # of the client errors, those that another attempt may not meet


class EndpointRefused(ValueError):
    """The endpoint will never serve such a request; the message is its own."""


class _AttemptFailed(Exception):
    """No answer this time. `pause` is what the server asks for, in seconds."""

    def __init__(self, kind: str, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.pause = pause


@dataclass(frozen=True)
class Retries:
    """How long to insist. Pauses grow from `first_pause` by a factor of 2, each drawn from its upper half."""

    num_attempts: int = 6
    first_pause: float = 0.5  # seconds
    timeout: float = 120.0  # of one attempt, seconds

    def __post_init__(self) -> None:
        if self.num_attempts < 1 or self.first_pause < 0 or self.timeout <= 0:
            raise ValueError(f"{self}: at least one attempt, no negative pause, a timeout above 0")


class Endpoint:
    """A `ChatPolicy` behind `url`, the base that `/chat/completions` is appended to. Thread-safe.

    Proxies are not used. `failures` counts failed attempts: timeout, connection, busy, server, answer.

    Args:
        omit: optional fields that this endpoint does not take; without `max_tokens` its newer name is sent.

    Raises:
        ValueError: `url` is not an address of a server, or a field cannot be left out.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        retries: Retries | None = None,
        omit: Sequence[str] = (),
    ) -> None:
        if unknown := sorted(set(omit) - set(OPTIONAL)):
            raise ValueError(
                f"{', '.join(unknown)} cannot be left out of a request; {', '.join(OPTIONAL)} can"
            )
        self._omit = frozenset(omit)
        self._address = Address.of(url, EXAMPLE)
        base, _, query = self._address.path.partition("?")
        self._path = f"{base.rstrip('/')}/chat/completions" + (f"?{query}" if query else "")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._retries = retries or Retries()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._jitter = random.Random()
        self.failures: Counter[str] = Counter()

    def complete(self, request: ChatRequest) -> Completion:
        """See `ChatPolicy.complete`."""
        wanted = request_body(request)
        if "max_tokens" in self._omit:
            wanted["max_completion_tokens"] = request.max_tokens
        body = json.dumps({k: v for k, v in wanted.items() if k not in self._omit}).encode()
        failures: list[_AttemptFailed] = []
        for attempt in range(self._retries.num_attempts):
            if self._closed.wait(self._pause(attempt, failures)):
                raise InfrastructureFault("the client was closed")
            try:
                return read_completion(self._ask(body))
            except _AttemptFailed as failure:
                failures.append(failure)
                with self._lock:
                    self.failures[failure.kind] += 1
        tried = "one attempt" if len(failures) == 1 else f"{len(failures)} attempts"
        raise InfrastructureFault(f"no completion in {tried}; the last: {failures[-1]}")

    def close(self) -> None:
        """Wait for no further attempt."""
        self._closed.set()

    def _pause(self, attempt: int, failures: list[_AttemptFailed]) -> float:
        if not failures:
            return 0.0
        grown = min(MAX_PAUSE, self._retries.first_pause * 2 ** (attempt - 1))
        asked = failures[-1].pause
        return grown * self._jitter.uniform(0.5, 1.0) if asked is None else min(MAX_PAUSE, max(0.0, asked))

    def _ask(self, body: bytes) -> bytes:
        try:
            response = post(self._address, self._path, body, self._retries.timeout, self._headers)
        except NoAnswer as error:
            kind = "timeout" if "within" in str(error) else "connection"
            raise _AttemptFailed(kind, str(error)) from error
        if response.status == 200 and not response.too_long:
            return response.content
        raise _failure(response)


def request_body(request: ChatRequest) -> dict[str, Any]:
    """The request as the API has it."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": list(request.messages),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }
    if request.tools:
        # One call is executed a turn, the convention of the field.
        body |= {"tools": list(request.tools), "parallel_tool_calls": False}
    return body


def _failure(response: Response) -> Exception:
    """What a response that is no answer means."""
    said = _error_message(response)
    told = f"status {response.status} {response.reason}: {said.get('message') or 'without a reason'}"
    if response.status == 200:
        return _AttemptFailed("answer", "an answer of unreasonable length")
    if response.status >= 500:
        return _AttemptFailed("server", told, _retry_after(response.headers))
    if response.status in _BUSY and said.get("code") != "insufficient_quota":
        return _AttemptFailed("busy", told, _retry_after(response.headers))
    if said.get("code") == "context_length_exceeded" or "context length" in str(said.get("message")):
        return ContextTooLong(told)
    return EndpointRefused(f"the endpoint refuses the request: {told}")


def _error_message(response: Response) -> Mapping[str, Any]:
    try:
        answer = json.loads(response.content)
    except (ValueError, RecursionError):
        return {"message": response.content[:200].decode("utf-8", "replace").strip()}
    error = answer.get("error", answer) if isinstance(answer, dict) else {"message": str(answer)[:200]}
    return error if isinstance(error, dict) else {"message": str(error)}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait: a number or a date; None where it asks for nothing readable."""
    asked = headers.get("retry-after", "").strip()
    try:
        return float(asked)
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
    except (ValueError, TypeError):
        return None


def read_completion(content: bytes | str) -> Completion:
    """The first choice of a `chat.completion` object.

    Raises:
        _AttemptFailed: it is none.
    """
    try:
        answer = json.loads(content)
        choice = answer["choices"][0]
        message = choice["message"]
        calls = [
            RawCall(
                str(call.get("id") or f"call_{number}"),
                str(call["function"]["name"]),
                _as_text(call["function"].get("arguments")),
            )
            for number, call in enumerate(message.get("tool_calls") or ())
        ]
        said = message.get("content") or ""
        if not isinstance(said, str):
            raise TypeError("its content is not text")
        usage = answer.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt, completion = (c if isinstance(c, int) and c >= 0 else None for c in counts)
    except (ValueError, RecursionError) as error:
        raise _AttemptFailed("answer", f"the answer is not JSON: {error}") from None
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _AttemptFailed("answer", f"the answer is no chat completion: {error!r}") from None
    return Completion(said, tuple(calls), str(choice.get("finish_reason") or "stop"), prompt, completion)


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps({} if arguments is None else arguments)
