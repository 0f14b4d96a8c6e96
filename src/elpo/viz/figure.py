"""One rollout tree as a picture for a paper or a talk, in the manner of the paper's Figure 4.

Every step is a box with the rollouts through it, R, A, branch and traj to three decimals, and what the search
found out about it. Colour repeats what the numbers and words say: blue above zero, orange below.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elpo.algorithms.advantage import node_values
from elpo.algorithms.credit import Credit
from elpo.tree import ROOT, RolloutTree
from elpo.tree_json import without_text
from elpo.types import StopReason
from elpo.viz.tree import node_marks, ranges, short_lines, three_decimals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GOOD, BAD, CRITICAL, PROBE, NO_ANSWER = "#0072B2", "#D55E00", "#A83A80", "#00795A", "#E69F00"
"""Okabe and Ito's colours, the last three darkened for text."""

FORMATS = (".png", ".svg", ".pdf")
MAX_TITLE = 24
"""Characters of a step's call or text in its box."""

BOX, LINE, ACROSS = 2.0, 0.155, 2.45
"""Inches: width of a box, height of a line in it, distance of two steps."""


def check_format(out: str | Path) -> Path:
    """The file to write.

    Raises:
        ValueError: if its suffix is none of `FORMATS`.
    """
    file = Path(out)
    if file.suffix.lower() not in FORMATS:
        raise ValueError(f"cannot draw {file}: choose a name that ends in {', '.join(FORMATS)}")
    return file


def write_tree_figure(tree: RolloutTree, credit: Credit | None, out: str | Path) -> Path:
    """Draw `tree` into a file, whose suffix chooses the format, and return it.

    Without `credit` boxes have no A, branch and traj and are coloured by R. Of a confidential problem no text
    is drawn.

    Raises:
        ValueError: the format is unknown, or the tree has no steps.
    """
    file = check_format(out)
    if not tree.nodes:
        raise ValueError(f"the tree of {tree.problem.id} has no steps: all its rollouts were lost to faults")
    if tree.problem.metadata.get("confidential"):
        tree = without_text(tree)

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    number = {leaf: i for i, leaf in enumerate(tree.leaves)}
    lines = _lines(tree, credit, number)
    heights = [LINE * (len(found) + 0.8) for found in lines]
    # Boxes with several rollouts have the room of several rows.
    alone = [h for h, leaves in zip(heights, tree.leaves_below(), strict=True) if len(leaves) == 1]
    x, y = _places(tree, max(alone) + 0.14)
    top = max(heights) / 2 + 0.35  # y grows downwards
    width, height = (max(x) + 1) * ACROSS + 1.5, max(y) + max(heights) + 0.9
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "elpo", "font.family": "DejaVu Sans"}
    ):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(-1.35, width - 1.35), ylim=(height - top, -top))
        axes.set_axis_off()
        _draw(axes, tree, credit, number, lines, x, y, heights)
        file.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the model may write any script
            # the same tree gives the same file
            undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(file.suffix.lower())
            figure.savefig(file, dpi=110, facecolor="white", metadata=undated)
    return file


def _draw(
    axes: Axes,
    tree: RolloutTree,
    credit: Credit | None,
    number: dict[int, int],
    lines: list[list[tuple[str, dict[str, Any]]]],
    x: list[int],
    y: list[float],
    heights: list[float],
) -> None:
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.path import Path as Curve

    searched = {node for found in tree.localizations for node in tree.path(found.leaf)}
    critical = {found.critical for found in tree.localizations}
    numbers = node_values(tree) if credit is None else credit.advantages
    most = float(np.abs(numbers).max()) or 1.0
    start = (-1.0, float(np.mean([y[i] for i, node in enumerate(tree.nodes) if node.parent == ROOT])))
    solved = sum(outcome.correct for outcome in tree.outcomes.values())
    head = f"{tree.problem.id}: {len(number)} rollouts, {solved} solved, policy {tree.policy_version}"
    signs = "● solved   ✖ failed   ▲ no answer   dashed: searched   thick: critical"
    corner: dict[str, Any] = {"transform": axes.transAxes, "parse_math": False}
    axes.text(0.01, 0.995, head, va="top", fontsize=9, weight="bold", **corner)
    axes.text(0.01, 0.005, signs, va="bottom", fontsize=8, color="0.3", **corner)
    axes.text(
        *start, "prompt", ha="center", va="center", fontsize=8, bbox={"boxstyle": "round", "fc": "white"}
    )
    for i, node in enumerate(tree.nodes):
        begin = (
            (start[0] + 0.32, start[1])
            if node.parent == ROOT
            else (x[node.parent] * ACROSS + BOX, y[node.parent])
        )
        end, middle = (x[i] * ACROSS, y[i]), (begin[0] + x[i] * ACROSS) / 2
        curve = Curve(
            [begin, (middle, begin[1]), (middle, end[1]), end],
            [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
        )
        style: dict[str, Any] = (
            {"ec": CRITICAL, "lw": 1.8, "ls": (0, (4, 2))} if i in searched else {"ec": "0.6"}
        )
        axes.add_patch(PathPatch(curve, fc="none", **style))
        box = FancyBboxPatch(
            (x[i] * ACROSS, y[i] - heights[i] / 2),
            BOX,
            heights[i],
            boxstyle="round,pad=0,rounding_size=0.06",
            fc=_tint(float(numbers[i]) / most),
            ec=CRITICAL if i in critical else "0.45",
            lw=2.5 if i in critical else 0.8,
        )
        axes.add_patch(box)
        for row, (text, how) in enumerate(lines[i]):
            top = y[i] - heights[i] / 2 + LINE * (row + 0.95)
            axes.text(
                x[i] * ACROSS + 0.08, top, text, va="center", parse_math=False, **{"fontsize": 7.5, **how}
            )
        if (outcome := tree.outcomes.get(i)) is not None:
            marker, color = ("o", GOOD) if outcome.correct else ("X", BAD)
            if not outcome.correct and outcome.stop is not StopReason.ANSWER:
                marker, color = "^", NO_ANSWER
            at = x[i] * ACROSS + BOX
            axes.plot(at + 0.13, y[i], marker, color=color, ms=7, mec="white", mew=0.6)
            axes.text(at + 0.26, y[i], f"{number[i]}", va="center", fontsize=8)


def _lines(
    tree: RolloutTree, credit: Credit | None, number: dict[int, int]
) -> list[list[tuple[str, dict[str, Any]]]]:
    """What is in every box: texts and how they are set."""
    values = node_values(tree)
    marks = node_marks(tree, number)
    depth: list[int] = []
    found: list[list[tuple[str, dict[str, Any]]]] = []
    for i, (node, leaves) in enumerate(zip(tree.nodes, tree.leaves_below(), strict=True)):
        depth.append(1 if node.parent == ROOT else depth[node.parent] + 1)
        through = ranges([number[leaf] for leaf in leaves])
        numbers = [f"R {three_decimals(values[i])}"]
        lines: list[tuple[str, dict[str, Any]]] = [(f"step {depth[i]} [{through}]", {"color": "0.35"})]
        title = "".join(short_lines(node.step))
        if title:
            shown = title if len(title) <= MAX_TITLE else f"{title[: MAX_TITLE - 1]}…"
            lines.append((shown, {"family": "DejaVu Sans Mono", "fontsize": 7}))
        if credit is not None:
            numbers.append(f"A {three_decimals(credit.advantages[i])}")
        lines.append(("   ".join(numbers), {"weight": "bold"}))
        if credit is not None:
            branch, trajectory = three_decimals(credit.branch[i]), three_decimals(credit.trajectory[i])
            lines.append((f"branch {branch}   traj {trajectory}", {}))
        colors = {"yellow": BAD, "cyan": PROBE, "bold magenta": CRITICAL}
        lines += [
            (f"◆ {mark}" if style == "bold magenta" else mark, {"color": colors[style], "weight": "bold"})
            for mark, style in marks.get(i, [])
        ]
        found.append(lines)
    return found


def _places(tree: RolloutTree, down: float) -> tuple[list[int], list[float]]:
    """Column and height of every node: leaves on rows `down` apart, others amid their children."""
    children = tree.children()
    x = [0] * len(tree.nodes)
    y = [0.0] * len(tree.nodes)
    row = 0
    for node in tree.depth_first():
        if tree.nodes[node].parent != ROOT:
            x[node] = x[tree.nodes[node].parent] + 1
        if node not in children:
            y[node] = row * down
            row += 1
    for node in reversed(range(len(tree.nodes))):
        if node in children:
            y[node] = float(np.mean([y[child] for child in children[node]]))
    return x, y


def _tint(share: float) -> tuple[float, ...]:
    """White at 0, half of the colour at ±1, so that black text can be read on it."""
    from matplotlib.colors import to_rgb

    color = np.array(to_rgb(GOOD if share > 0 else BAD))
    weight = 0.5 * min(1.0, abs(share))
    return tuple(1 - weight * (1 - color))
