"""Learning curves of one or more runs, from their metrics.jsonl."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elpo.training.run_folder import RunFolder, RunFolderError
from elpo.viz.figure import check_format

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = list[dict[str, Any]]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind people can tell apart."""


def learning_curves(run_dirs: Sequence[str | Path], out_file: str | Path) -> Path:
    """Draw success, entropy, clipping, KL, tool use, lengths and search of the runs, and return the file.

    A run keeps its colour in every panel. Metrics a run did not record are left out. The band of held-out
    success is its 95 % interval over problems. The file's suffix chooses PNG, SVG or PDF.

    Raises:
        RunFolderError: if a folder has no metrics.
        ValueError: if the suffix is none of these.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out = check_format(out_file)
    runs = _read(run_dirs)
    figure = Figure(figsize=(18, 8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, title in zip(figure.subplots(2, 4).flat, PANELS, strict=True):
        _panel(axes, title, runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return out


def single_panels(run_dirs: Sequence[str | Path], folder: str | Path) -> list[Path]:
    """Each panel of `learning_curves` in files of its own, as .png and .svg, and return them.

    Panels of which no run recorded anything are left out.

    Raises:
        RunFolderError: if a folder has no metrics.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = _read(run_dirs)
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for title in PANELS:
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        FigureCanvasAgg(figure)
        if not _panel(figure.subplots(), title, runs):
            continue
        for suffix in (".png", ".svg"):
            name = re.sub(r"[^a-z]+", "-", title.partition("(")[0].lower()).strip("-")
            written.append(Path(folder) / f"{name}{suffix}")
            figure.savefig(written[-1], dpi=150)
    return written


def _read(run_dirs: Sequence[str | Path]) -> dict[str, Records]:
    runs = {}
    for path in run_dirs:
        records = RunFolder(path).read_metrics()
        if not records:
            raise RunFolderError(f"there are no metrics in {path}; is it the folder of a run?")
        runs[str(path)] = records
    return runs


def _panel(axes: Axes, title: str, runs: dict[str, Records]) -> bool:
    """Draw one of `PANELS`; False where no run recorded what it shows."""
    axes.set_title(title, fontsize="medium")
    for i, (name, records) in enumerate(runs.items()):
        PANELS[title](axes, records, COLORS[i % len(COLORS)], Path(name).name)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize="x-small")
        return True
    axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes)
    return False


def series(records: Records, phase: str, name: str, per: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric in one phase, divided by the metric `per` if given. Two float64 [n]."""
    found = [r for r in records if r["phase"] == phase and name in r and (per is None or r.get(per, 0) > 0)]
    steps = np.asarray([r["step"] for r in found], dtype=np.float64)
    values = np.asarray([r[name] / (r[per] if per else 1) for r in found], dtype=np.float64)
    return steps, values


def rollouts_at(records: Records, steps: np.ndarray) -> np.ndarray:
    """Rollouts drawn for training up to the end of each RL step, 0 at step 0. float64, shape of `steps`."""
    known_steps, rollouts = series(records, "rl", "rollouts/total")
    totals = np.interp(steps, np.r_[0.0, known_steps], np.r_[0.0, np.cumsum(rollouts)])
    return np.asarray(totals, dtype=np.float64)


def _success_by_step(axes: Axes, records: Records, color: str, name: str) -> None:
    axes.plot(*series(records, "rl", "success/train"), color=color, alpha=0.4, label=f"{name} train")
    steps, values = series(records, "evaluation", "success/heldout")
    _with_band(axes, records, steps, steps, values, color, name)
    axes.set_xlabel("RL step")
    axes.set_ylim(bottom=0)


def _success_by_rollouts(axes: Axes, records: Records, color: str, name: str) -> None:
    steps, values = series(records, "evaluation", "success/heldout")
    _with_band(axes, records, rollouts_at(records, steps), steps, values, color, name)
    axes.set_xlabel("training rollouts")
    axes.set_ylim(bottom=0)


def _with_band(
    axes: Axes,
    records: Records,
    x: np.ndarray,
    steps: np.ndarray,
    values: np.ndarray,
    color: str,
    name: str,
) -> None:
    """Held-out success at `x` with its 95 % interval, where its standard error was recorded. Each [n]."""
    axes.plot(x, values, color=color, marker="o", ms=3, label=f"{name} held-out")
    known, errors = series(records, "evaluation", "success/heldout_standard_error")
    at = np.isin(steps, known[np.isfinite(errors)])
    spread = 1.96 * errors[np.isfinite(errors)]
    if at.any():
        low, high = np.maximum(values[at] - spread, 0), np.minimum(values[at] + spread, 1)
        axes.fill_between(x[at], low, high, color=color, alpha=0.15)


def _lines(*lines: tuple[str, str, str, str | None]) -> Callable[[Axes, Records, str, str], None]:
    """A panel of RL metrics over steps: (metric, label, line style, divisor) each."""

    def draw(axes: Axes, records: Records, color: str, name: str) -> None:
        for metric, label, style, per in lines:
            steps, values = series(records, "rl", metric, per)
            if len(steps):
                axes.plot(steps, values, color=color, linestyle=style, label=f"{name} {label}")
        axes.set_xlabel("RL step")

    return draw


PANELS: dict[str, Callable[[Axes, Records, str, str], None]] = {
    "success rate": _success_by_step,
    "held-out success per rollouts spent": _success_by_rollouts,
    "entropy of sampled tokens (nats)": _lines(("entropy/mean", "entropy", "-", None)),
    "share of sampled tokens clipped": _lines(
        ("clip/low_share", "low", "-", None),
        ("clip/high_share", "high", "--", None),
        ("clip/elc_share", "under ELC's bound", ":", None),
    ),
    "KL (nats)": _lines(
        ("kl/approx", "to the behaviour policy", "-", None), ("kl/reference", "to the reference", "--", None)
    ),
    "tool calls": _lines(
        ("tool/calls", "per rollout", "-", "rollouts/total"),
        ("tool/failed_share", "failed share", "--", None),
    ),
    "tokens per rollout": _lines(
        ("tokens/sampled", "sampled", "-", "rollouts/total"),
        ("tokens/feedback", "feedback", "--", "rollouts/total"),
    ),
    "error localization": _lines(
        ("localization/finished_share", "finished share", "-", None),
        ("localization/step_mean", "critical step", "--", None),
    ),
}
"""Title and drawing of every panel."""
