"""A report of a scripted run, open in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from elpo.algorithms.credit import assign_credit
from elpo.training.run_folder import RunFolder
from elpo.types import Problem
from elpo.viz.report import write_report
from tests.viz.browser import Browser, chromium
from tests.viz.runs import coins_tree, figure4_tree, hostile_tree, scripted_run


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A scripted run, with the paper's tree and a hostile one in its last step."""
    folder = scripted_run(tmp_path_factory.mktemp("page") / "coins")
    tokenizer = AutoTokenizer.from_pretrained(folder.checkpoints / "rl-000004" / "model")
    secret = coins_tree(
        Problem("secret-1", ({"role": "user", "content": "canary"},), "canary", {"confidential": True}),
        tokenizer,
        3,
        0.7,
    )
    paper = figure4_tree()
    folder.write_trees(5, [(tree, assign_credit(tree)) for tree in (paper, hostile_tree(tokenizer), secret)])
    return folder


@pytest.fixture(scope="session")
def report(recorded: RunFolder) -> Path:
    return write_report([recorded.path])


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Browser]:
    """The report, freshly opened; nothing may have been wrong when the test is over."""
    browser.color_scheme("light")
    browser.driver.get("about:blank")
    browser.complaints()
    browser.open(report)
    yield browser
    assert browser.complaints() == []
    assert browser.script("return window.broken ?? null") is None
    assert browser.script("return performance.getEntriesByType('resource').length") == 0
