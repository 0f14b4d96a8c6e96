"""Specifications of the programs task: a function of one integer, told as changes line after line."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from elpo.interfaces import Split
from elpo.tasks.synthetic import digest_of, without_repetition

Operation = Literal["add", "mul", "sub", "clamp", "gap", "mod", "cap"]

EXPRESSIONS: dict[Operation, str] = {
    "add": "x + {n}",
    "mul": "x * {n}",
    "sub": "x - {n}",
    "clamp": "max(x - {n}, 0)",
    "gap": "abs(x - {n})",
    "mod": "x % {n}",
    "cap": "min(x, {n})",
}
"""How each is written in Python. `sub`, `clamp` and `gap` agree from n on, `mod` and `cap` below n."""

COMPUTE: dict[Operation, Callable[[int, int], int]] = {
    "add": lambda x, n: x + n,
    "mul": lambda x, n: x * n,
    "sub": lambda x, n: x - n,
    "clamp": lambda x, n: max(x - n, 0),
    "gap": lambda x, n: abs(x - n),
    "mod": lambda x, n: x % n,
    "cap": lambda x, n: min(x, n),
}

CONFUSED_WITH: dict[Operation, Operation] = {
    "add": "mul", "mul": "add", "sub": "clamp", "clamp": "gap", "gap": "sub", "mod": "cap", "cap": "mod",
}  # fmt: skip
"""The operation that a confused programmer writes instead."""

BLIND: frozenset[Operation] = frozenset({"sub", "clamp", "gap", "mod", "cap"})
"""Operations whose confusion passes the visible test of every line drawn here; the others' never does."""

VERBS: dict[str, Operation] = {
    "raise by": "add",
    "lift by": "add",
    "scale by": "mul",
    "multiply by": "mul",
    "lower by": "sub",
    "cut by": "sub",
    "drain by": "clamp",
    "empty by": "clamp",
    "stray from": "gap",
    "differ from": "gap",
    "wrap at": "mod",
    "cycle at": "mod",
    "cap at": "cap",
    "stop at": "cap",
}
"""What each verb asks for. A specification uses a verb at most once."""

MAX_LINES = 12
MAX_VALUE = 99


@dataclass(frozen=True)
class Line:
    """One change of the value; `verb` is what the reader sees and decides `op`."""

    op: Operation
    verb: str
    amount: int

    @property
    def text(self) -> str:
        """The line as it is told: `lower by 5`."""
        return f"{self.verb} {self.amount}"

    def __call__(self, x: int) -> int:
        """What the line makes of `x`."""
        return COMPUTE[self.op](x, self.amount)

    @property
    def unit_tests(self) -> tuple[tuple[int, int], ...]:
        """Hidden (input, output) pairs: below zero, small, large, and on both sides of every edge."""
        n = self.amount
        inputs = {-9, -2, -1, 0, 1, 2, 3, 5, 8, 13, 34, 89, 144, n - 1, n, n + 1, 2 * n - 1, 2 * n, 3 * n + 1}
        return tuple((x, self(x)) for x in sorted(inputs))


@dataclass(frozen=True)
class Spec:
    """A whole problem: the lines in order, and the value that the visible tests begin with."""

    start: int
    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """The specification as the policy reads it."""
        told = ",\n".join(line.text for line in self.lines)
        return f"From {self.start}:\n{told}."

    @property
    def values(self) -> tuple[int, ...]:
        """What the visible tests expect: the value after each line."""
        values, current = [], self.start
        for line in self.lines:
            current = line(current)
            values.append(current)
        return tuple(values)

    @property
    def digest(self) -> str:
        """A hash of what has to be written."""
        return digest_of((self.start, [(line.verb, line.amount) for line in self.lines]))


def draw_spec(rng: random.Random, min_lines: int, max_lines: int) -> Spec:
    """A random specification whose visible values stay within 1..99.

    The set of verbs is uniform among the sets of its size (start, order and amounts are drawn again until
    they fit, the verbs are not), so that success rates have a closed form.
    """
    verbs = rng.sample(sorted(VERBS), rng.randint(min_lines, max_lines))
    while True:
        rng.shuffle(verbs)
        start = value = rng.randint(3, 40)
        lines: list[Line] = []
        for verb in verbs:
            amounts = _amounts(VERBS[verb], value)
            if not amounts:
                break
            lines.append(Line(VERBS[verb], verb, rng.choice(amounts)))
            value = lines[-1](value)
        else:
            return Spec(start, tuple(lines))


def specs(key: str, split: Split, min_lines: int, max_lines: int) -> Iterator[Spec]:
    """The endless, repetition-free sequence of a split's specifications that `key` seeds."""
    return without_repetition(lambda rng: draw_spec(rng, min_lines, max_lines), key, split)


def _amounts(op: Operation, value: int) -> list[int]:
    """Amounts that keep the value in range, and hide the confused operation exactly if it is `BLIND`."""
    candidates = range(value + 1, min(value + 9, MAX_VALUE) + 1) if op in ("mod", "cap") else range(2, 10)
    confused = CONFUSED_WITH[op]
    return [
        n
        for n in candidates
        if 1 <= COMPUTE[op](value, n) <= MAX_VALUE
        and (COMPUTE[op](value, n) == COMPUTE[confused](value, n)) == (op in BLIND)
    ]
