"""What the tasks with an exact oracle share: options, splits, sequences, and where a trajectory is lost.

Their problems are sets of verbs put in order; a demonstrator misreads some verbs more often than others.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from math import comb
from typing import Annotated, ClassVar, Protocol, TypeVar

from pydantic import Field

from elpo.graders.boxed import last_boxed
from elpo.interfaces import Split
from elpo.schema import Count, Section
from elpo.types import Problem, Step, StopReason

Rate = Annotated[float, Field(ge=0, lt=1, strict=True)]
Reward = Annotated[float, Field(strict=True)]

_SPLIT_BUCKETS: Mapping[int, Split] = {0: "test", 1: "validation"}  # of 10; the others are for training


class SyntheticConfig(Section):
    """Options that every synthetic task has. A task adds its own and checks all with `check`."""

    detours: ClassVar[tuple[str, ...]] = ()  # names of the options that are chances of a harmless detour

    seed: Count = 0
    reward_correct: Reward = 1.0
    reward_wrong: Reward = -1.0
    hard_error: Rate = 0.65
    easy_error: Rate
    hard_verbs: tuple[str, ...]

    def check(self, length: str, verbs: Iterable[str]) -> None:
        """Refuse options that contradict each other.

        Args:
            length: what a problem is long in, as in `min_lines`.
            verbs: all there are.
        """
        shortest, longest = getattr(self, f"min_{length}"), getattr(self, f"max_{length}")
        if shortest > longest:
            raise ValueError(f"min_{length} {shortest} is above max_{length} {longest}")
        if self.reward_wrong >= self.reward_correct:
            raise ValueError(
                f"reward_wrong {self.reward_wrong:g} is not below reward_correct {self.reward_correct:g}"
            )
        verbs = list(verbs)
        if unknown := sorted(set(self.hard_verbs) - set(verbs)):
            raise ValueError(f"hard_verbs {unknown} are unknown; valid names: {', '.join(verbs)}")
        if len(set(self.hard_verbs)) < len(self.hard_verbs):
            raise ValueError(f"hard_verbs {list(self.hard_verbs)} names a verb twice")
        if (chance := sum(getattr(self, detour) for detour in self.detours)) >= 1:
            raise ValueError(f"{' + '.join(self.detours)} = {chance:g}; keep the sum below 1")

    def reward(self, correct: bool) -> float:
        """What a trajectory gets."""
        return self.reward_correct if correct else self.reward_wrong

    def error_rate(self, verb: str) -> float:
        """The chance that the demonstrator misreads `verb`."""
        return self.hard_error if verb in self.hard_verbs else self.easy_error

    def draw_detour(self, rng: random.Random) -> str | None:
        """The detour that the demonstrator makes now, or none."""
        draw = rng.random()
        for detour in self.detours:
            draw -= getattr(self, detour)
            if draw < 0:
                return detour
        return None


class Drawn(Protocol):
    """A problem as its task draws it."""

    @property
    def digest(self) -> str:
        """A hexadecimal hash of its content."""
        ...


D = TypeVar("D", bound=Drawn)


def digest_of(content: object) -> str:
    """A hexadecimal hash of content that is known by its `repr`."""
    return hashlib.sha256(repr(content).encode()).hexdigest()


def split_of(digest: str) -> Split:
    """The split of the content with this hash, for every seed: 8 in 10 are for training."""
    return _SPLIT_BUCKETS.get(int(digest, 16) % 10, "train")


def without_repetition(draw: Callable[[random.Random], D], key: str, split: Split) -> Iterator[D]:
    """The endless sequence of a split's problems that `key` seeds, each content once."""
    seen: set[str] = set()
    for index in count():
        drawn = draw(random.Random(f"{key}:{index}"))
        digest = drawn.digest
        if split_of(digest) == split and digest not in seen:
            seen.add(digest)
            yield drawn


def mean_success(right: Sequence[float], num: int) -> float:
    """The chance that `num` verbs are all read rightly, the set of them uniform among those of its size.

    With the chances q_v of V verbs,

        P(K) = e_K(q) / C(V, K),    e_K = elementary symmetric polynomial of the q_v.
    """
    symmetric = [1.0] + [0.0] * num
    for chance in right:
        for k in range(num, 0, -1):
            symmetric[k] += symmetric[k - 1] * chance
    return symmetric[num] / comb(len(right), num)


def first_lost_step(
    recoverable: Callable[[Problem, Sequence[Step]], bool],
    problem: Problem,
    steps: Sequence[Step],
    stop: StopReason = StopReason.ANSWER,
) -> int | None:
    """The step (1-based) after which a finished trajectory could no longer succeed; None if it did.

    A trajectory that was cut off while it could still have succeeded was lost with its last step.

    Raises:
        ValueError: there are no steps.
    """
    if not steps:
        raise ValueError("a finished trajectory has at least one step")
    for length in range(1, len(steps) + 1):
        if not recoverable(problem, steps[:length]):
            return length
    finished = stop is StopReason.ANSWER and not steps[-1].is_tool_step
    return None if finished else len(steps)


def final_boxed(steps: Sequence[Step]) -> str | None:
    """What the last turn boxes; None where it calls a tool or boxes nothing."""
    return last_boxed(steps[-1].text) if steps and not steps[-1].is_tool_step else None


def same_integer(answer: str | None, truth: str) -> bool:
    """True where the answer is `truth` as a plain integer; a leading + or zeros do not matter."""
    match = re.fullmatch(r"\s*\+?0*(\d+)\s*", answer or "", re.ASCII)
    return match is not None and match[1] == truth
