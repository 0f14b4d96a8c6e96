"""How many tool calls a trajectory may make, as training goes on."""

from __future__ import annotations

from collections.abc import Sequence


def call_limit(phases: Sequence[int], step: int, num_steps: int) -> int | None:
    """The limit in force at a training step; `phases` are equally long parts of the training.

    Source: CIR (arXiv 2505.24480) raises its limit by hand between runs; ToRL (arXiv 2503.23383) has one.

    Args:
        phases: the limits, in order; none for no limit.
        step: from 1 to `num_steps`.
        num_steps: of the whole training.

    >>> [call_limit((2, 4, 8), step, num_steps=6) for step in range(1, 7)]
    [2, 2, 4, 4, 8, 8]
    """
    if not phases:
        return None
    return phases[min(len(phases) - 1, (step - 1) * len(phases) // max(1, num_steps))]
