"""A study as a table and as curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from elpo.provenance import as_list
from elpo.studies.results import RunResult, interval, paired, unequal_budgets
from elpo.studies.study import Study

COLORS = ("#0072B2", "#444444", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#A6761D")
"""Okabe and Ito's, told apart with any colour vision; line styles change with each round."""
STYLES = ("-", "--", ":", "-.")
MAX_THIN = 5
"""Variants up to which every seed is drawn."""


def report(study: Study, results: Sequence[RunResult], about: Mapping[str, str]) -> str:
    """Markdown: what made it, a row for each variant, and the differences from the first one."""
    parts = [f"# Comparison: {study.name}", as_list(about), _table(study, results)]
    if budgets := unequal_budgets(results):
        spent = "; ".join(f"{name} {sorted(numbers)}" for name, numbers in budgets.items())
        parts.append(f"**The budgets differ, so this is no fair comparison.** Rollouts: {spent}.")
    if len(study.variants) > 1:
        parts.append(_differences(study, results))
    parts.append(
        "± is half of the 95 % confidence interval over seeds (Student's t). Held-out success is at the "
        "training temperature. *Best* is the best of several measurements, so it is optimistic."
    )
    return "\n\n".join(parts) + "\n"


def _table(study: Study, results: Sequence[RunResult]) -> str:
    lines = [
        "| variant | seeds | before | after | best | mean of curve | rollouts to "
        f"{study.target:g} (median) | rollouts | sampled tokens | tool calls | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for variant in study.variants:
        runs = [result for result in results if result.variant == variant]
        if not runs:
            lines.append(f"| {variant} | 0 of {len(study.seeds)} |" + " |" * 9)
            continue
        reached = [run.rollouts_to(study.target) for run in runs]
        median = statistics.median_low(math.inf if price is None else price for price in reached)
        price = "not reached" if math.isinf(median) else f"{median:.0f}"
        cells = [
            variant,
            f"{len(runs)} of {len(study.seeds)}",
            *(_spread([getattr(run, key) for run in runs]) for key in ("before", "after", "best", "mean")),
            f"{price} ({sum(price is not None for price in reached)} of {len(runs)})",
            *(
                f"{statistics.fmean(getattr(run, key) for run in runs):,.0f}"
                for key in ("rollouts", "sampled_tokens", "tool_calls", "seconds")
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _differences(study: Study, results: Sequence[RunResult]) -> str:
    reference, *others = study.variants
    lines = [f"| minus {reference}, paired by seed | seeds | after | mean of curve |", "|---|---|---|---|"]
    for variant in others:
        after = paired(results, variant, reference, "after")
        mean = paired(results, variant, reference, "mean")
        cells = f"{_spread(after, '+')} | {_spread(mean, '+')}" if after else "| "
        lines.append(f"| {variant} | {len(after)} | {cells} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], sign: str = "") -> str:
    mean, half = interval(values)
    return f"{mean:{sign}.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def curves(study: Study, results: Sequence[RunResult], path: Path) -> Path:
    """Held-out success against rollouts: the mean over seeds and a band of one standard error; where there
    are few variants, every seed as a thin line.

    Between two measurements of a seed, and only there, its success is taken to change linearly: a method that
    throws groups away is not measured at the same rollouts with every seed.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, variant in enumerate(study.variants):
        runs = [result for result in results if result.variant == variant]
        if not runs:
            continue
        color = COLORS[number % len(COLORS)]
        style = STYLES[number // len(COLORS) % len(STYLES)]
        if len(study.variants) <= MAX_THIN:
            for run in runs:
                axes.plot(*zip(*run.curve, strict=True), style, color=color, alpha=0.25, linewidth=0.6)
        last = min(run.rollouts for run in runs)
        rollouts = sorted({point for run in runs for point, _ in run.curve if point <= last})
        measured = [np.array(run.curve).T for run in runs]
        success = np.array([np.interp(rollouts, at, values) for at, values in measured])
        mean = success.mean(0)
        axes.plot(rollouts, mean, style, color=color, linewidth=2, label=f"{variant} ({len(runs)} seeds)")
        if len(runs) > 1:
            error = success.std(0, ddof=1) / np.sqrt(len(runs))
            axes.fill_between(rollouts, mean - error, mean + error, color=color, alpha=0.1, linewidth=0)
    axes.axhline(study.target, color="#999999", linewidth=0.6)
    axes.set(xlabel="rollouts", ylabel="held-out success", ylim=(0, 1), title=study.name)
    axes.grid(alpha=0.3)
    if results:
        axes.legend(fontsize="small", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
