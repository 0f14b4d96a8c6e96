"""How often the policy solves problems it has not been trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elpo.algorithms.strategies import independent
from elpo.rollout.counts import RolloutCounts
from elpo.rollout.scheduler import Scheduler
from elpo.tree import RolloutTree
from elpo.types import Problem


@dataclass(frozen=True, eq=False)
class Success:
    """Sampled success: every problem tried the same number of times at the rollout temperature."""

    mean: float  # mean@k, the expected success of one sample
    standard_error: float  # over problems
    trees: list[RolloutTree]
    counts: RolloutCounts


def sample_success(
    scheduler: Scheduler, problems: Sequence[Problem], num_samples: int, seed: int
) -> tuple[list[RolloutTree], RolloutCounts]:
    """`num_samples` independent trajectories of each problem, graded; the problems may be the share of one
    process."""
    return scheduler.grow(problems, independent(), num_samples, seed)


def success_of(trees: list[RolloutTree], counts: RolloutCounts) -> Success:
    """How often the trajectories of `trees` are correct.

    A sample lost to an infrastructure fault is left out, neither right nor wrong; a problem whose samples
    were all lost is left out of the mean.
    """
    rates = [
        np.mean([outcome.correct for outcome in tree.outcomes.values()]) for tree in trees if tree.outcomes
    ]
    spread = float(np.std(rates, ddof=1) / np.sqrt(len(rates))) if len(rates) > 1 else float("nan")
    return Success(float(np.mean(rates)) if rates else float("nan"), spread, trees, counts)
