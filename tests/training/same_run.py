"""Whether two runs are the same, times aside."""

from __future__ import annotations

import math
from typing import Any

import torch
from safetensors.torch import load_file

from elpo.training.checkpoint import Checkpoints
from elpo.training.run_folder import Phase, RunFolder


def timeless(folder: RunFolder) -> list[dict[str, Any]]:
    """The recorded metrics without those that a clock made."""
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "tool/seconds"))}
        for line in folder.read_metrics()
    ]


def assert_identical(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, whatever they are made of."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{where}[{i}]")
    else:
        assert a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)), where


def assert_same_run(run: RunFolder, expected: RunFolder) -> None:
    """Weights, optimizer, schedule, position, metrics and trees of two finished runs."""
    assert_identical(timeless(run), timeless(expected), "metrics")
    for which in ("last", "best"):
        ours, others = (Checkpoints(folder.checkpoints) for folder in (run, expected))
        a, b = ours.path(which), others.path(which)
        assert a is not None and b is not None and a.name == b.name
        assert_identical(ours.read(a), others.read(b), which)
        weights = [load_file(path / "model" / "model.safetensors") for path in (a, b)]
        assert_identical(*weights, which)
    phases: tuple[Phase, ...] = ("rl", "evaluation")
    for phase in phases:
        assert run.tree_steps(phase) == expected.tree_steps(phase)
        for step in run.tree_steps(phase):
            mine, theirs = run.read_trees(step, phase), expected.read_trees(step, phase)
            for (tree, _), (other, _) in zip(mine, theirs, strict=True):
                assert tree.outcomes == other.outcomes and tree.localizations == other.localizations
                for leaf in tree.leaves:
                    assert tree.context(leaf).tolist() == other.context(leaf).tolist()
    left = sorted(path.name for path in run.checkpoints.iterdir())
    assert left == sorted(path.name for path in expected.checkpoints.iterdir())
