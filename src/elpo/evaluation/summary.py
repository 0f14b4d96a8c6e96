"""From samples to the numbers of an evaluation, each with its interval over problems (docs/EVALUATION.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from elpo.evaluation.estimators import accuracy_by_calls, bootstrap_interval, major_at_k, pass_at_k
from elpo.evaluation.trajectories import Sample


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % bootstrap interval over problems (nan with fewer than two), and over how many."""

    value: float
    low: float
    high: float
    num_problems: int


@dataclass(frozen=True)
class Summary:
    """What an evaluation found. A metric that could not be computed is left out."""

    num_problems: int
    num_samples: int  # of each problem, lost ones included
    num_faults: int  # samples lost to faults of the tools, neither right nor wrong
    estimates: dict[str, Estimate]
    accuracy_by_calls: dict[int, tuple[int, float]]  # calls -> (samples, share correct)


def reported_ks(num_samples: int) -> list[int]:
    """1, 4, 16, ... and the number of samples itself.

    >>> reported_ks(32)
    [1, 4, 16, 32]
    """
    powers = [4**i for i in range(num_samples.bit_length()) if 4**i <= num_samples]
    return powers if num_samples in powers else [*powers, num_samples]


def summarize(samples: Sequence[Sample], num_samples: int) -> Summary:
    """Success, votes and cost of `num_samples` draws of each problem.

    Every problem weighs the same in pass@K and major@K; one with fewer than K usable samples is left out
    of those of that K. Major@K is left out where a correct sample has no answer: the task has nothing to
    vote on. Rewards, turns, calls and tokens are ratios of sums over all usable samples.

    Raises:
        ValueError: a problem has not `num_samples` samples.
    """
    drawn = [list(group) for _, group in groupby(samples, key=lambda sample: sample.problem)]
    for group in drawn:
        if len(group) != num_samples:
            raise ValueError(f"problem {group[0].problem} has {len(group)} samples, not {num_samples}")
    usable = [kept for group in drawn if (kept := [s for s in group if s.correct is not None])]
    kept_samples = [sample for group in usable for sample in group]
    estimates: dict[str, Estimate] = {}
    ks = reported_ks(num_samples)
    for k in ks:
        groups = [group for group in usable if len(group) >= k]
        correct = [[bool(sample.correct) for sample in group] for group in groups]
        _put(estimates, f"pass@{k}", [pass_at_k(len(group), sum(group), k) for group in correct])
    if not any(sample.correct and sample.answer_class is None for sample in kept_samples):
        for k in ks:
            groups = [group for group in usable if len(group) >= k]
            _put(estimates, f"major@{k}", [_majority(group, k) for group in groups])
    for name, (numerator, denominator) in RATIOS.items():
        parts = ([sum(map(part, group)) for group in usable] for part in (numerator, denominator))
        _put(estimates, name, *parts)
    return Summary(
        num_problems=len(drawn),
        num_samples=num_samples,
        num_faults=len(samples) - len(kept_samples),
        estimates=estimates,
        accuracy_by_calls=accuracy_by_calls(
            [sample.calls for sample in kept_samples], [bool(sample.correct) for sample in kept_samples]
        ),
    )


Part = Callable[[Sample], float]


def _each(sample: Sample) -> float:
    return 1.0


def _tokens(sample: Sample) -> float:
    return float(sample.sampled_tokens)


RATIOS: dict[str, tuple[Part, Part]] = {
    "reward/mean": (lambda sample: sample.reward, _each),
    "turns/mean": (lambda sample: float(sample.turns), _each),
    "tool/calls_mean": (lambda sample: float(sample.calls), _each),
    "tool/failed_share": (lambda s: float(s.failed_calls), lambda s: float(s.calls)),
    "tokens/per_sample": (_tokens, _each),
    "tokens/per_solved": (_tokens, lambda sample: float(bool(sample.correct))),
    "entropy/mean": (lambda sample: sample.entropy, _tokens),
}
"""Metrics that are a sum over samples divided by another one."""


def _majority(group: Sequence[Sample], k: int) -> float:
    return major_at_k([s.answer_class for s in group], [bool(s.correct) for s in group], k)


def _put(
    estimates: dict[str, Estimate],
    name: str,
    values: Sequence[float],
    weights: Sequence[float] | None = None,
) -> None:
    """Add an estimate, unless it would be a mean over nothing or of what was not measured."""
    total = float(len(values)) if weights is None else math.fsum(weights)
    if not total or math.isnan(math.fsum(values)):
        return
    low, high = bootstrap_interval(np.asarray(values, dtype=float), weights)
    estimates[name] = Estimate(math.fsum(values) / total, low, high, len(values))
