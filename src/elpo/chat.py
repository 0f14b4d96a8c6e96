"""A policy that speaks chat messages instead of token ids: any model behind an API.

What it says has no token ids, so nothing drawn from it can ever be trained on (`elpo.types.MessageStep`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol


class ContextTooLong(Exception):
    """The conversation is longer than the model can take: the policy's own doing."""


@dataclass(frozen=True)
class ChatRequest:
    """Ask for one assistant turn. `seed` makes draws from the same conversation different ones."""

    model: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]
    max_tokens: int
    temperature: float
    seed: int

    @property
    def key(self) -> str:
        """A digest of all of it: equal requests have the same answer."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class RawCall:
    """A tool call as the API gives it; `arguments` is JSON, or what the policy took for it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Completion:
    """One assistant turn; token counts are None where the endpoint reported none."""

    content: str
    calls: tuple[RawCall, ...] = ()
    finish: str = "stop"  # "length" where a limit cut it
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ChatPolicy(Protocol):
    """Answers requests of many threads."""

    def complete(self, request: ChatRequest) -> Completion:
        """
        Raises:
            InfrastructureFault: it could not be drawn; no verdict on the policy.
            ContextTooLong: the model cannot take the conversation.
            ValueError: the request can never be served: wrong model, key or address.
        """
        ...

    def close(self) -> None:
        """Ask for nothing any more."""
        ...
