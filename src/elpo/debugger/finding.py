"""What a search of one failed trajectory has found, and all that it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from elpo.algorithms.confidence import critical_posterior
from elpo.rollout.messages import call_text, calls_of, messages_of, recorded_outputs
from elpo.tree import RolloutTree
from elpo.types import Step

MAX_CONTINUATIONS = 3


@dataclass(frozen=True)
class AnchorProbe:
    """Continuations drawn from after a step (0: from the prompt)."""

    step: int
    drawn: int
    successes: int
    lost: int  # could not be drawn at all: neither successes nor failures


@dataclass(frozen=True)
class ShownStep:
    """A step for people: what was said and called, what came back."""

    text: str
    calls: tuple[str, ...]
    feedback: str


@dataclass(frozen=True)
class Continuation:
    """A rollout that left the failed trajectory after `after` and succeeded."""

    after: int
    steps: tuple[ShownStep, ...]
    answer: str | None


@dataclass(frozen=True)
class Cost:
    """What the search has used, earlier sessions included."""

    rollouts: int
    budget: int
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    failed_attempts: Mapping[str, int] = field(default_factory=dict)  # of this session, by kind
    replayed: int = 0  # requests answered from what earlier sessions drew
    seconds: float = 0.0


@dataclass(frozen=True)
class Finding:
    """`critical` is the first irrecoverable step, from 1, as far as the search is finished; else None.

    `posterior[i]` is the probability of step i + 1, see `critical_posterior`; `stopped` says what ended an
    unfinished search.
    """

    problem: str
    model: str
    grader: str
    steps: tuple[ShownStep, ...]
    critical: int | None
    posterior: tuple[float, ...]
    probes: tuple[AnchorProbe, ...]
    continuations: tuple[Continuation, ...]
    lost: tuple[str, ...]  # why draws were lost, those that were drawn in the end included
    cost: Cost
    stopped: str | None = None
    notices: tuple[str, ...] = ()

    @property
    def confidence(self) -> float | None:
        """The probability of the step named; None where none is."""
        return None if self.critical is None else self.posterior[self.critical - 1]

    @property
    def likeliest(self) -> int:
        """The step with the largest probability, the first of equals."""
        return int(np.argmax(self.posterior)) + 1

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"format": 1, **asdict(self), "confidence": self.confidence, "likeliest": self.likeliest}


def anchor_probes(tree: RolloutTree, leaf: int, lost: Mapping[int, int]) -> tuple[AnchorProbe, ...]:
    """What was drawn at every anchor of the path of `leaf`, in its order.

    Args:
        lost: by node id, how many draws came to nothing.
    """
    path = tree.path(leaf)
    number = {node: i for i, node in enumerate(path, 1)}
    drawn: dict[int, list[bool]] = {}
    for other, outcome in tree.outcomes.items():
        if other != leaf:
            after = max((number.get(node, 0) for node in tree.path(other)), default=0)
            drawn.setdefault(after, []).append(outcome.correct)
    missing = {number.get(node, 0): count for node, count in lost.items()}
    return tuple(
        AnchorProbe(step, len(drawn.get(step, ())), sum(drawn.get(step, ())), missing.get(step, 0))
        for step in sorted({*drawn, *missing})
    )


def posterior_of(probes: Sequence[AnchorProbe], num_steps: int) -> tuple[float, ...]:
    """The probability of every step of a trajectory to be the first irrecoverable one."""
    drawn, successes = [0] * num_steps, [0] * num_steps  # at anchors 0 to K = num_steps - 1
    for probe in probes:
        drawn[probe.step], successes[probe.step] = probe.drawn, probe.successes
    return tuple(float(p) for p in critical_posterior(drawn, successes))


def recovered(tree: RolloutTree, leaf: int, before: int) -> tuple[Continuation, ...]:
    """The successful rollouts that left the path of `leaf` latest, but before step `before` was taken."""
    path = tree.path(leaf)
    found: list[Continuation] = []
    for other, outcome in tree.outcomes.items():
        if not outcome.correct:
            continue
        own = tree.path(other)
        after = sum(node in path for node in own)
        if after < before:
            steps = tuple(shown(tree.nodes[node].step) for node in own[after:])
            found.append(Continuation(after, steps, outcome.answer))
    return tuple(sorted(found, key=lambda c: -c.after)[:MAX_CONTINUATIONS])


def shown(step: Step) -> ShownStep:
    """A step for people; calls that could not be read stay in the text."""
    calls = calls_of(step)
    text = str(messages_of(step)[0]["content"]) if calls and messages_of(step) else step.text
    return ShownStep(text, tuple(call_text(call) for call in calls), "\n".join(recorded_outputs(step)))
