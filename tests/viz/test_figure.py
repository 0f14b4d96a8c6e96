"""A tree as a picture: every number of the paper's Figure 4, the marks, and text that is no text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elpo.algorithms.credit import assign_credit
from elpo.tree import ROOT, RolloutTree
from elpo.types import Outcome, Problem, Step
from elpo.viz.figure import write_tree_figure
from tests.trees import FIGURE4, Figure4, flat


def texts(svg: Path) -> list[str]:
    """The texts of a picture in the order they were drawn."""
    root = ET.parse(svg).getroot()
    return ["".join(found.itertext()) for found in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_number_of_figure_4_is_in_the_picture(tmp_path: Path) -> None:
    tree = Figure4().fill_and_search()
    drawn = texts(write_tree_figure(tree, assign_credit(tree), tmp_path / "tree.svg"))
    starts = [i for i, text in enumerate(drawn) if text.startswith("step ")]
    boxes = {drawn[i]: " ".join(drawn[i:j]) for i, j in zip(starts, [*starts[1:], None], strict=True)}
    compared = 0
    for node in FIGURE4["nodes"]:
        if node["printed"] is None:
            continue
        (box,) = (text for head, text in boxes.items() if _is(head, node))
        for name, value in node["printed"].items():
            assert re.search(rf"\b{name} {re.escape(f'{value:.3f}')}\b", box), (node["id"], name)
            compared += 1
    assert compared == 116
    assert sum("CRITICAL of" in text for text in drawn) == len(tree.localizations)
    assert sum(text.startswith("probed") for text in drawn) == sum(len(f.probes) for f in tree.localizations)


def _is(head: str, node: dict) -> bool:
    found = re.match(r"step (\d+) \[([\d,-]+)\]", head)
    assert found is not None
    leaves = [
        n
        for part in found[2].split(",")
        for n in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)
    ]
    return (int(found[1]), leaves) == (node["step"], node["leaves"])


@pytest.mark.parametrize(("suffix", "begin"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_formats(tmp_path: Path, suffix: str, begin: bytes) -> None:
    tree = flat([1.0, -1.0])
    first = write_tree_figure(tree, assign_credit(tree), tmp_path / "new" / f"a{suffix}").read_bytes()
    assert first.startswith(begin)
    assert write_tree_figure(tree, assign_credit(tree), tmp_path / f"b{suffix}").read_bytes() == first


def test_boxes_do_not_overlap(tmp_path: Path) -> None:
    tree = Figure4().fill_and_search()
    root = ET.parse(write_tree_figure(tree, assign_credit(tree), tmp_path / "t.svg")).getroot()
    boxes = []
    for path in root.iter("{http://www.w3.org/2000/svg}path"):
        points = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d", "")), dtype=float)
        fill = path.get("style", "")
        if len(points) > 10 and "fill: none" not in fill and 100 < np.ptp(points[:, 0]) < 200:
            boxes.append((*points.min(0), *points.max(0)))
    assert len(boxes) == len(tree.nodes)
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]


def test_hostile_text_is_drawn_as_it_is(tmp_path: Path) -> None:
    text = "$\\frac{<b>&\x00\x1b[31m\ud800日本 $x"
    step = Step(np.array([1]), np.array([True]), np.zeros(1), np.zeros(1), text)
    tree = RolloutTree(Problem("$\\oops{</svg>", (), ""), np.array([1]))
    tree.add(ROOT, [step], Outcome(-1.0, False))
    drawn = texts(write_tree_figure(tree, None, tmp_path / "t.svg"))
    assert any(found.startswith("$\\frac{<b>&��[31m") for found in drawn)
    assert any(found.startswith("$\\oops{</svg>: 1 rollouts") for found in drawn)
    assert not any(found.startswith("branch") for found in drawn)  # no credit, no numbers of it


def test_a_confidential_problem_leaves_no_text(tmp_path: Path) -> None:
    step = Step(np.array([1]), np.array([True]), np.zeros(1), np.zeros(1), "canary")
    tree = RolloutTree(Problem("q", (), "canary", {"confidential": True}), np.array([1]))
    tree.add(ROOT, [step], Outcome(-1.0, False, answer="canary"))
    assert "canary" not in write_tree_figure(tree, None, tmp_path / "t.svg").read_text()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.png, \.svg, \.pdf"):
        write_tree_figure(flat([1.0]), None, tmp_path / "tree.gif")
    with pytest.raises(ValueError, match="has no steps"):
        write_tree_figure(replace(flat([1.0]), nodes=[], outcomes={}), None, tmp_path / "tree.png")
