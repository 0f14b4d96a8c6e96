"""The report page of large, living and other runs.

ELPO_SCREENSHOT_RUN=RUN takes pictures of that run; ELPO_SCREENSHOTS=DIR keeps them.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from elpo.algorithms.credit import assign_credit
from elpo.training.run_folder import RunFolder
from elpo.types import Problem
from elpo.viz.report import write_report
from elpo.viz.server import report_server
from tests.viz.browser import NEEDS_BROWSER, Browser, open_tree
from tests.viz.runs import coins_tree, record_step, scripted_run

pytestmark = NEEDS_BROWSER


def test_two_hundred_trees_open_within_two_seconds(
    browser: Browser, tmp_path: Path, recorded: RunFolder
) -> None:
    folder = RunFolder(tmp_path / "large")
    folder.prepare(recorded.config())
    tokenizer = AutoTokenizer.from_pretrained(recorded.checkpoints / "rl-000004" / "model")
    tokenizer.save_pretrained(folder.checkpoints / "rl-000004" / "model")
    trees = [coins_tree(Problem(f"p{i}", (), "4"), tokenizer, i, 0.7) for i in range(20)]
    credits = [assign_credit(tree) for tree in trees]
    rng = np.random.default_rng(0)
    first = folder.write_trees(1, list(zip(trees, credits, strict=True)))
    for number in range(1, 11):
        if number > 1:
            shutil.copy(first, folder.trees_file(number))
        record_step(folder, number, 0.7, rng)
    browser.open(write_report([folder.path]))
    assert browser.text("#num-trees").startswith("200 of 200")
    milliseconds = int(browser.script("return document.documentElement.dataset.ready"))
    print(f"200 trees: ready after {milliseconds} ms")
    assert milliseconds < 2000
    open_tree(browser, "0-rl-7-3")


def test_the_live_page_follows_the_run(browser: Browser, tmp_path: Path) -> None:
    folder = scripted_run(tmp_path / "live", steps=2, trees=1)
    with report_server([folder.path]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            browser.open(f"http://127.0.0.1:{server.server_address[1]}/")
            browser.until(lambda: browser.text("#live").startswith("live"))
            assert browser.text("#tiles").count("2 of 4") == 1
            trees = len(browser.all(".card"))
            tokenizer = AutoTokenizer.from_pretrained(folder.checkpoints / "rl-000004" / "model")
            tree = coins_tree(Problem("bag-new", (), "4"), tokenizer, 5, 0.8)
            folder.write_trees(3, [(tree, assign_credit(tree))])
            record_step(folder, 3, 0.9, np.random.default_rng(0))
            browser.until(lambda: browser.text("#tiles").count("3 of 4"))
            assert len(browser.all(".card")) == trees + 1
            open_tree(browser, "0-rl-3-0")
            folder.append_metrics("rl", 4, {"rollouts/total": 1.0})
            browser.until(lambda: browser.text("#tiles").count("4 of 4"))
            assert browser.one("#viewer").is_displayed()  # what one reads is not taken away
            browser.press("\ue00c")
            browser.until(lambda: browser.one("#report").is_displayed())
            time.sleep(1)  # it glides to where one was
            browser.script("scrollTo({top: 0, behavior: 'instant'})")
            browser.screenshot("live", tmp_path)
        finally:
            server.shutdown()
            thread.join()
    browser.until(lambda: "not up to date" in browser.text("#live"))


@pytest.mark.skipif("ELPO_SCREENSHOT_RUN" not in os.environ, reason="ELPO_SCREENSHOT_RUN names no run")
def test_pictures_of_another_run(browser: Browser, tmp_path: Path) -> None:
    """Those of docs/REPORT.md: its overview, a searched tree with both outcomes, one problem at two steps."""
    browser.color_scheme("light")
    browser.size(1440, 810)
    browser.open(write_report([os.environ["ELPO_SCREENSHOT_RUN"]], tmp_path / "r.html"))
    browser.screenshot("report", tmp_path)
    searched = "shown.index.trees.filter((t) => t.found && numSolved(t) > 3).map((t) => t.key)[0]"
    browser.script(f"toggleTheme(); location.hash = `tree=${{{searched}}}`")
    browser.until(lambda: browser.texts(".details h3"))
    browser.screenshot("viewer", tmp_path)
    same = "(t) => t.phase === 'evaluation' && t.problem === shown.index.trees.at(-1).problem"
    browser.script(
        f"const all = shown.index.trees.filter({same}); toggleTheme(); "
        "location.hash = `tree=${all[0].key}&with=${all.at(-1).key}`"
    )
    browser.until(lambda: len(browser.texts(".details h3")) == 2)
    browser.screenshot("side-by-side", tmp_path)
