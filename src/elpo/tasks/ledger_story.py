"""Stories of the ledger task: someone has a count of things, and line after line something changes it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from elpo.interfaces import Split
from elpo.tasks.synthetic import digest_of, without_repetition

Operation = Literal["add", "sub", "mul"]

OPERATIONS: tuple[Operation, ...] = ("add", "sub", "mul")

VERBS: dict[str, Operation] = {
    "finds": "add",
    "buys": "add",
    "wins": "add",
    "collects": "add",
    "loses": "sub",
    "sells": "sub",
    "drops": "sub",
    "breaks": "sub",
    "multiplies by": "mul",
    "scales by": "mul",
    "magnifies by": "mul",
    "amplifies by": "mul",
}
"""What each verb does to the count. A story uses a verb at most once, so a verb names its line."""

MAX_LINES = len(VERBS)
MAX_COUNT = 999

_NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Ida")
_ITEMS = ("shells", "coins", "stamps", "marbles", "buttons", "pebbles", "tickets", "beads")


@dataclass(frozen=True)
class Line:
    """One change of the count; `verb` is what the reader sees and decides `op`."""

    op: Operation
    verb: str
    amount: int

    @property
    def text(self) -> str:
        """The line as the story tells it, without punctuation: `finds 5`."""
        return f"{self.verb} {self.amount}"


@dataclass(frozen=True)
class Story:
    """A whole problem: who has how many of what, and the lines in order."""

    name: str
    item: str
    start: int
    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """The story as the policy reads it, one line of the book per line of text."""
        told = ",\n".join(line.text for line in self.lines)
        return f"{self.name} has {self.start} {self.item} and\n{told}.\nHow many {self.item} are there now?"

    @property
    def counts(self) -> tuple[int, ...]:
        """The count after each line."""
        counts, current = [], self.start
        for line in self.lines:
            current = apply(line.op, current, line.amount)
            counts.append(current)
        return tuple(counts)

    @property
    def digest(self) -> str:
        """A hash of what has to be computed. Names and items do not enter: retold stories are the same."""
        return digest_of((self.start, [(line.verb, line.amount) for line in self.lines]))


def apply(op: Operation, current: int, amount: int) -> int:
    """The count after an operation.

    >>> [apply(op, 7, 2) for op in OPERATIONS]
    [9, 5, 14]
    """
    if op == "add":
        return current + amount
    return current - amount if op == "sub" else current * amount


def draw_story(rng: random.Random, min_lines: int, max_lines: int) -> Story:
    """A random story whose count stays within 1..999.

    The set of verbs is uniform among the sets of its size (start, order and amounts are drawn again
    until the count fits, the verbs are not), so that success rates over stories have a closed form.
    """
    num_lines = rng.randint(min_lines, max_lines)
    verbs = rng.sample(sorted(VERBS), num_lines)
    name, item = rng.choice(_NAMES), rng.choice(_ITEMS)
    while True:
        rng.shuffle(verbs)
        lines = tuple(
            Line(VERBS[verb], verb, rng.randint(2, 3) if VERBS[verb] == "mul" else rng.randint(2, 9))
            for verb in verbs
        )
        story = Story(name, item, rng.randint(3, 40), lines)
        if _fits(story):
            return story


def stories(key: str, split: Split, min_lines: int, max_lines: int) -> Iterator[Story]:
    """The endless, repetition-free sequence of a split's stories that `key` seeds."""
    return without_repetition(lambda rng: draw_story(rng, min_lines, max_lines), key, split)


def _fits(story: Story) -> bool:
    """True where the count stays in range and no wrong operation would give a right count.

    The latter needs `n + a = n * a`, that is n = a = 2 (`n - a` differs from both for positive a > 1).
    """
    before = (story.start, *story.counts[:-1])
    return all(1 <= n <= MAX_COUNT for n in story.counts) and all(
        (n, line.amount) != (2, 2) for n, line in zip(before, story.lines, strict=True)
    )
