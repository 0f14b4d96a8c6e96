"""Every recipe can be read, says what it needs and gives, and those numbers are those of `elpo plan`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from elpo.recipes import load_config
from elpo.tasks.loading import load_task
from elpo.training.plan import DEVICES, plan

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
MODELS = ROOT / "tests/fixtures/models"  # sizes of models, without weights

NEEDS = re.compile(r"Device: (\w+), (\d+) process(?:es)?(, sharded)?\. Memory: (\d+) GB\. Minutes: (\d+)")


def header(path: Path) -> str:
    lines = path.read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_needs_and_gives(path: Path) -> None:
    config = load_config(path)
    load_task(config.task.name, config.task.options)
    about = header(path)
    for word in ("Device: ", "Memory: ", "inutes", "xpected"):
        assert word in about, word
    if config.model.path is None:
        assert "CPU" in about
        return
    found = NEEDS.search(about)
    assert found, "Device: NAME, N process. Memory: N GB. Minutes: N"
    config = load_config(path, [f"model.path={MODELS / config.model.path}"])
    needed = plan(config, DEVICES[found[1]], int(found[2]), bool(found[3]))
    assert int(found[4]) == pytest.approx(needed.peak_bytes / 1e9, rel=0.1)
    assert int(found[5]) == pytest.approx(needed.total_seconds / 60, rel=0.1)
    assert needed.peak_bytes < 0.95 * DEVICES[found[1]].memory
    assert "not yet run" in about  # until somebody has, with an entry in docs/LOG.md
