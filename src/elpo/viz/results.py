"""The paper's figures of measured results, from the JSON files that measuring leaves.

    result.json     of `elpo eval`: Pass@K and Major@K over K
    recovery.json   of benchmarks/recovery.py: recovery after an edit of one step (the paper's Fig. 1)
    ranking.json    of benchmarks/ranking.py: how well a step score ranks siblings (the paper's Fig. 3)

Whiskers and bands are 95 % intervals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elpo.viz.figure import check_format
from elpo.viz.plots import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[str, float, float | None, float | None]
"""Label, value, and the ends of its interval where it has one."""

MARKERS = "os^DvPX"


def plot_results(files: Sequence[str | Path], out: str | Path) -> Path:
    """Draw files of one kind together, a colour and a sign for each series, and return `out`.

    Raises:
        ValueError: a file cannot be read or is none of these, they are of different kinds, or the format of
            `out` is unknown.
    """
    target = check_format(out)
    found = [(_kind(path), path) for path in map(Path, files)]
    kinds = {kind for (kind, _), _ in found}
    if len(kinds) != 1:
        raise ValueError(
            f"these are results of different kinds ({', '.join(sorted(kinds))}): plot each by itself"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    {"evaluation": _pass_at_k, "recovery": _recovery, "ranking": _ranking}[kinds.pop()](
        axes, [(path, data) for (_, data), path in found]
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    return target


def _kind(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if "pass@1" in data.get("metrics", {}):
            return "evaluation", data
        if "recovery" in (data.get("results") or [{}])[0]:
            return "recovery", data
        if "pairwise_accuracy" in (data.get("rows") or [{}])[0]:
            return "ranking", data
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"cannot read results from {path}: {error}") from error
    raise ValueError(
        f"{path} holds nothing to draw: give result.json of elpo eval, recovery.json or ranking.json"
    )


def _pass_at_k(axes: Axes, results: list[tuple[Path, dict[str, Any]]]) -> None:
    for i, (path, data) in enumerate(results):
        for metric, style in (("pass", "-"), ("major", "--")):
            known = sorted(
                (int(match[1]), estimate)
                for name, estimate in data["metrics"].items()
                if (match := re.fullmatch(rf"{metric}@(\d+)", name))
            )
            if not known:
                continue
            ks = [k for k, _ in known]
            values = np.array([estimate["value"] for _, estimate in known], dtype=float)
            low, high = (np.array([e[end] for _, e in known], dtype=float) for end in ("low", "high"))
            color = COLORS[i % len(COLORS)]
            name = f"{path.absolute().parent.name} {metric.capitalize()}@K"
            axes.plot(ks, values, style, color=color, marker=MARKERS[i % len(MARKERS)], ms=4, label=name)
            axes.fill_between(ks, low, high, color=color, alpha=0.12)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("samples K")
    axes.set_ylim(0, 1)


def _recovery(axes: Axes, results: list[tuple[Path, dict[str, Any]]]) -> None:
    series: dict[str, list[Point]] = {}
    for _, data in results:
        for policy in data["results"]:
            series["/".join(Path(policy["run"]).parts[-2:])] = [
                (row["edit"], row["recovered"], *row["interval"]) for row in policy["recovery"]
            ]
    _bars(axes, series)
    axes.set_ylabel("share of failures recovered")
    axes.set_xlabel("edited step")


def _ranking(axes: Axes, results: list[tuple[Path, dict[str, Any]]]) -> None:
    series: dict[str, list[Point]] = {}
    for _, data in results:
        for row in data["rows"]:
            name = f"{'/'.join(Path(row['run']).parts[-2:])} {row['algorithm']}, {row['prefixes']}"
            series[name] = [
                (title, row[key]["value"], row[key]["low"], row[key]["high"])
                for key, title in (
                    ("pairwise_accuracy", "pairwise accuracy"),
                    ("kendall_tau", "Kendall's τ-b"),
                )
            ]
    _bars(axes, series)


def _bars(axes: Axes, series: dict[str, list[Point]]) -> None:
    """Groups of bars, one a label; a series keeps its colour and its hatching."""
    labels = list(dict.fromkeys(label for points in series.values() for label, *_ in points))
    width = 0.8 / max(1, len(series))
    hatches = ("", "//", "..", "xx", "--", "\\\\", "oo")
    for i, (name, points) in enumerate(series.items()):
        x = np.array([labels.index(label) for label, *_ in points]) + (i - (len(series) - 1) / 2) * width
        values = np.array([point[1] for point in points], dtype=float)
        low, high = (np.array([point[end] for point in points], dtype=float) for end in (2, 3))
        whiskers = np.nan_to_num(np.maximum([values - low, high - values], 0))
        style: dict[str, Any] = {
            "color": COLORS[i % len(COLORS)],
            "hatch": hatches[i % len(hatches)],
            "edgecolor": "white",
        }
        axes.bar(x, values, width * 0.92, yerr=whiskers, capsize=3, label=name, **style)
    axes.set_axisbelow(True)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xticks(range(len(labels)), [label.replace(" ", "\n", 1) for label in labels])
