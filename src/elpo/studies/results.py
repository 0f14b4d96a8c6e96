"""What the finished runs of a study say: a number for each run, and intervals over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from elpo.config import Config
from elpo.studies.study import Study
from elpo.training.run_folder import RunFolder


@dataclass(frozen=True)
class RunResult:
    """One finished training. `curve` is (rollouts drawn for training so far, held-out success)."""

    variant: str
    seed: int
    curve: tuple[tuple[int, float], ...]
    rollouts: int
    sampled_tokens: int
    tool_calls: int
    seconds: float

    @property
    def before(self) -> float:
        """Held-out success of the cold start."""
        return self.curve[0][1]

    @property
    def after(self) -> float:
        """Held-out success at the end."""
        return self.curve[-1][1]

    @property
    def best(self) -> float:
        """The highest held-out success, the cold start included: an optimistic number."""
        return max(success for _, success in self.curve)

    @property
    def mean(self) -> float:
        """The mean of the curve after the start: how early it learned, and how well."""
        return statistics.fmean(success for _, success in self.curve[1:])

    def rollouts_to(self, target: float) -> int | None:
        """Rollouts drawn when held-out success was first measured to be `target` or more."""
        return next((rollouts for rollouts, success in self.curve if success >= target), None)


def read_results(study: Study) -> list[RunResult]:
    """The runs of a study that are finished, variant by variant."""
    found = []
    for variant, config in study.configs.items():
        for seed in study.seeds:
            result = read_result(study.folder(variant, seed), variant, seed, config)
            if result is not None:
                found.append(result)
    return found


def read_result(folder: Path, variant: str, seed: int, config: Config) -> RunResult | None:
    """The numbers of one run; None where neither its steps nor its rollouts are used up, or not measured."""
    lines = RunFolder(folder).read_metrics("rl")
    evaluations = RunFolder(folder).read_metrics("evaluation")
    spent = [0, *accumulate(int(line["rollouts/total"]) for line in lines)]
    rl, round_size = config.rl, config.rl.problems_per_step * config.algorithm.num_rollouts
    used_up = rl.max_rollouts is not None and rl.max_rollouts - spent[-1] < round_size
    measured = bool(evaluations) and evaluations[-1]["step"] == len(lines)
    if not measured or (len(lines) < rl.num_steps and not used_up):
        return None
    return RunResult(
        variant,
        seed,
        tuple((spent[line["step"]], line["success/heldout"]) for line in evaluations),
        spent[-1],
        sum(int(line["tokens/sampled"]) for line in lines),
        sum(int(line["tool/calls"]) for line in lines),
        sum(line["time/total"] for line in lines),
    )


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half width of its confidence interval by Student's t; NaN width for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return statistics.fmean(values), math.nan
    half = t.ppf((1 + confidence) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(half)


def paired(results: Sequence[RunResult], variant: str, reference: str, what: str) -> list[float]:
    """`what` (a property of `RunResult`) of a variant minus the reference's, for every seed both finished."""
    of = {(result.variant, result.seed): getattr(result, what) for result in results}
    seeds = [seed for name, seed in of if name == variant and (reference, seed) in of]
    return [of[variant, seed] - of[reference, seed] for seed in seeds]


def unequal_budgets(results: Sequence[RunResult]) -> dict[str, set[int]]:
    """The rollouts spent by each variant, where they are not all the same: such a comparison is unfair."""
    spent: dict[str, set[int]] = {}
    for result in results:
        spent.setdefault(result.variant, set()).add(result.rollouts)
    return spent if len(set().union(*spent.values())) > 1 else {}
