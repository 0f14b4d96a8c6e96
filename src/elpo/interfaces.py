"""What a plug-in implements: a tool, a task, an engine. The search's own seam is in `strategies`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from elpo.types import Outcome, Problem, Step, StopReason, ToolCall, ToolResult

Split = Literal["train", "validation", "test"]


class InfrastructureFault(RuntimeError):
    """Something that serves the rollouts failed by itself: no doing of the policy, and no verdict on it."""


class ToolSession(Protocol):
    """The state of a tool after some calls. Immutable: calling twice on one session is a branch."""

    def call(self, call: ToolCall) -> tuple[ToolResult, ToolSession]:
        """Run `call` and return its result with the state after it. Never raises for bad input;
        a failed call that changed nothing may return the same state."""
        ...

    def close(self) -> None:
        """Free what this state holds. Safe to call twice."""
        ...


class Tool(Protocol):
    """Something the policy can call by name."""

    name: str
    schema: Mapping[str, Any]  # OpenAI function schema, rendered by the chat template

    def open(self, problem: Problem) -> ToolSession:
        """The state before the first call of a rollout of `problem`.

        Raises:
            InfrastructureFault: whatever serves the tool is out of order; so is any other RuntimeError.
            ValueError: the problem asks for something impossible, a mistake in the data.
        """
        ...

    def close(self) -> None:
        """Stop whatever serves the tool."""
        ...


class Task(Protocol):
    """Where problems come from and what counts as solving one. Optional methods: docs/EXTENDING.md."""

    name: str
    tool_names: Sequence[str]

    def problems(self, split: Split, num: int) -> list[Problem]:
        """The first `num` problems of a split; the splits never overlap."""
        ...

    def grade(self, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
        """Judge a finished trajectory. Never raises for anything the policy wrote.

        Raises:
            InfrastructureFault: the grader itself failed; the trajectory is neither right nor wrong.
        """
        ...


@dataclass(frozen=True, eq=False)
class TurnRequest:
    """Ask the policy for one assistant turn.

    `rollout` names the rollout across its turns, `group` the tree whose rollouts may share prefixes.
    `seed` and the token position alone decide what is sampled, never the batch around it. `temperature`
    is for this turn alone, 0 takes the likeliest token; None: the engine's own.
    """

    rollout: int
    group: int
    token_ids: np.ndarray  # int64 [T], the whole context
    max_new_tokens: int
    seed: int
    temperature: float | None = None
    num_top: int = 0  # alternatives to report for every token


@dataclass(frozen=True, eq=False)
class Turn:
    """A sampled assistant turn; `ended` is False where the token limit cut it."""

    rollout: int
    token_ids: np.ndarray  # int64 [L], ends with an end-of-turn token iff `ended`
    logprobs: np.ndarray  # float32 [L], at the sampling temperature
    entropies: np.ndarray  # float32 [L], nats, at the sampling temperature
    ended: bool
    top_ids: np.ndarray | None = None  # int64 [L, k], the likeliest tokens where they were asked for
    top_logprobs: np.ndarray | None = None  # float32 [L, k], at the sampling temperature


@dataclass
class EngineCounts:
    """Work done since the engine was made; occupancy is decoded_tokens / (decode_steps * num_slots)."""

    decode_steps: int = 0  # steps in which a token was sampled
    chunk_steps: int = 0  # of these, the ones that also fed prompts or feedback, in a pass of its own
    decoded_tokens: int = 0  # sampled
    fed_tokens: int = 0  # context tokens (not sampled in the same turn) put through the model
    reused_tokens: int = 0  # context tokens whose keys and values were copied instead
    evicted_tokens: int = 0  # kept for branches of a tree that went on, and dropped for want of memory


class Engine(Protocol):
    """Samples turns for many rollouts at once."""

    num_slots: int  # rollouts that can be live (between first submit and release) at the same time
    counts: EngineCounts

    def submit(self, request: TurnRequest) -> None:
        """Queue one turn. A rollout's next turn extends the context of its last one."""
        ...

    def step(self) -> list[Turn]:
        """Advance every queued turn by one decode step; return those that ended, ordered by rollout."""
        ...

    def release(self, rollout: int) -> None:
        """The rollout is over; its slot is free, its prefix stays available to its group."""
        ...

    def forget(self, group: int) -> None:
        """The tree is finished; nothing of it needs to be kept."""
        ...
