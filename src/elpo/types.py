"""The values everything else passes around.

Token ids are the truth; text is a view of them. All arrays are NumPy and one-dimensional; the letter
in a shape comment is the project's legend: L tokens of one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Problem:
    """One task instance: what the policy is asked, and what the grader needs to judge the answer."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCall:
    """A well-formed call written by the policy. Malformed text never becomes a `ToolCall`."""

    name: str
    arguments: Mapping[str, Any]


class ToolStatus(StrEnum):
    """How a tool call ended. Only `INFRASTRUCTURE_FAULT` is not the policy's doing."""

    OK = "ok"
    PROGRAM_ERROR = "program_error"
    TIMEOUT = "timeout"
    RESOURCE_LIMIT = "resource_limit"
    MALFORMED_CALL = "malformed_call"
    INFRASTRUCTURE_FAULT = "infrastructure_fault"


@dataclass(frozen=True)
class ToolResult:
    """What a tool answered; `output` is the text shown to the policy."""

    status: ToolStatus
    output: str
    seconds: float = 0.0


class StopReason(StrEnum):
    """Why a trajectory ended. `FAULT` makes it unusable; every other reason is the policy's own."""

    ANSWER = "answer"
    TURN_LIMIT = "turn_limit"
    TOKEN_LIMIT = "token_limit"
    MALFORMED_CALLS = "malformed_calls"
    FAULT = "fault"


@dataclass(frozen=True, eq=False)
class Step:
    """One assistant turn plus the tool feedback it triggered: the node content of a rollout tree.

    `sampled` marks the tokens the policy chose; feedback and chat-template tokens are False and are
    never trained on. `logprobs` and `entropies` (nats) are those of the behaviour policy at the
    sampling temperature, and 0 where `sampled` is False.
    """

    token_ids: np.ndarray  # int64 [L]
    sampled: np.ndarray  # bool [L]
    logprobs: np.ndarray  # float32 [L]
    entropies: np.ndarray  # float32 [L], nats
    text: str = ""  # the assistant turn, decoded
    tool_call: ToolCall | None = None
    tool_result: ToolResult | None = None

    @property
    def is_tool_step(self) -> bool:
        """True where the environment answered, so that a rollout can be continued from here."""
        return self.tool_result is not None


UNKNOWN_TOKEN = -1
"""Stands for each token of a turn that came as text, so that its length is known and nothing else."""


@dataclass(frozen=True, eq=False)
class MessageStep(Step):
    """A step known only as chat messages, as an endpoint or a log gives it: it has no token ids.

    Every token id is `UNKNOWN_TOKEN`, log-probabilities and entropies are NaN where nobody measured them;
    L is the number of tokens the endpoint reported, 0 where it did not. Tokenizing the text again would
    not give what was sampled, so a tree with such a step can be searched, graded and looked at, but never
    trained on (`elpo.tree.RolloutTree.require_token_ids`).

    `messages` are the assistant's message and the tool messages that answer it. A given trajectory may have
    several calls in one turn; `tool_call` and `tool_result` are then those of the first.
    """

    messages: tuple[Mapping[str, Any], ...] = ()

    @staticmethod
    def of(
        messages: Sequence[Mapping[str, Any]],
        num_tokens: int = 0,
        text: str = "",
        tool_call: ToolCall | None = None,
        tool_result: ToolResult | None = None,
    ) -> MessageStep:
        """A step whose turn had `num_tokens` tokens, nobody knows which."""
        unknown = np.full(num_tokens, np.nan, np.float32)
        ids = np.full(num_tokens, UNKNOWN_TOKEN, np.int64)
        sampled = np.ones(num_tokens, np.bool_)
        return MessageStep(ids, sampled, unknown, unknown, text, tool_call, tool_result, tuple(messages))


@dataclass(frozen=True)
class Outcome:
    """The judgement on a finished trajectory.

    `correct` is the flag the search tests; `reward` may be shaped and is what credit is made from.
    """

    reward: float
    correct: bool
    stop: StopReason = StopReason.ANSWER
    answer: str | None = None


@dataclass(frozen=True)
class Probe:
    """The suffixes drawn at one anchor of a search, and how many of them succeeded."""

    anchor: int  # node id whose prefix was continued
    num_rollouts: int
    num_successes: int


@dataclass(frozen=True)
class Localization:
    """The result of searching one failed trajectory for its first irrecoverable step.

    `critical` is a node id on the path of `leaf`, or None where the search did not finish; `exact`
    is False when the budget ended first. A search that keeps a posterior names the likeliest step even
    then, and may name further steps in `falls` that probably cost much of the chance, though not all.
    """

    leaf: int
    critical: int | None
    probes: tuple[Probe, ...]
    exact: bool = True
    falls: tuple[int, ...] = ()
