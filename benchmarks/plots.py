"""The two pictures that the benchmarks need: groups of bars, and curves, both with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elpo.viz.study import COLORS, STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float, float]
"""A value and its interval: value, low, high."""
Curve = Sequence[tuple[float, Point]]
"""Points by their place on the horizontal axis."""


def bars(panels: Mapping[str, Mapping[str, Mapping[str, Point]]], ylabel: str, path: Path) -> None:
    """A panel each: group -> name of the bar -> value with interval. Bars of one name have one colour."""
    figure, axes = _panels(len(panels))
    for axis, (title, groups) in zip(axes, panels.items(), strict=True):
        names = list(dict.fromkeys(name for group in groups.values() for name in group))
        width = 0.8 / len(names)
        for number, name in enumerate(names):
            places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(groups))]
            shown = [(place, group[name]) for place, group in zip(places, groups.values(), strict=True)
                     if name in group]  # fmt: skip
            axis.bar(
                [place for place, _ in shown],
                [point[0] for _, point in shown],
                width,
                yerr=_errors([point for _, point in shown]),
                color=COLORS[number % len(COLORS)],
                label=name,
                capsize=2,
                error_kw={"linewidth": 0.8},
            )
        axis.set_xticks(range(len(groups)), list(groups))
        axis.set_title(title)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel(ylabel)
    axes[-1].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def curves(
    panels: Mapping[str, Mapping[str, Curve]], xlabel: str, ylabel: str, path: Path, ticks: Sequence[int] = ()
) -> None:
    """A panel each: name of the curve -> points with intervals. The horizontal axis is logarithmic."""
    figure, axes = _panels(len(panels))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for number, (name, curve) in enumerate(lines.items()):
            axis.errorbar(
                [place for place, _ in curve],
                [point[0] for _, point in curve],
                yerr=_errors([point for _, point in curve]),
                label=name,
                color=COLORS[number % len(COLORS)],
                linestyle=STYLES[number // len(COLORS) % len(STYLES)],
                marker="o",
                markersize=3,
                capsize=2,
                linewidth=1.2,
                elinewidth=0.6,
            )
        axis.set_xscale("log", base=2)
        if ticks:
            axis.set_xticks(ticks, list(map(str, ticks)))
        axis.set_xlabel(xlabel)
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(ylabel)
    axes[-1].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def _panels(number: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * number, 4), layout="constrained")
    return figure, figure.subplots(1, number, sharey=True, squeeze=False)[0]


def _errors(points: Sequence[Point]) -> list[list[float]]:
    """Distances below and above, as matplotlib wants them."""
    below = [max(0.0, value - low) for value, low, _ in points]
    return [below, [max(0.0, high - value) for value, _, high in points]]
