"""The report page in a real browser: opened, clicked through, typed at, looked at.

ELPO_SCREENSHOTS=DIR keeps the pictures; ELPO_SCREENSHOT_RUN=RUN takes them of another run.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from elpo.algorithms.credit import assign_credit
from elpo.training.run_folder import RunFolder
from elpo.types import Problem
from elpo.viz.report import write_report
from elpo.viz.server import report_server
from tests.trees import FIGURE4, Figure4
from tests.viz.browser import Browser, chromium, why_not
from tests.viz.runs import (
    HOSTILE,
    coins_tree,
    figure4_tree,
    hostile_tree,
    record_step,
    scripted_run,
)

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
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


@pytest.fixture(scope="module")
def report(run: RunFolder) -> Path:
    return write_report([run.path])


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


def open_tree(page: Browser, key: str, **more: Any) -> None:
    address = "&".join([f"tree={key}", *(f"{name}={value}" for name, value in more.items())])
    page.script("location.hash = arguments[0]", address)
    page.until(lambda: page.texts(f'.pane[data-key="{key}"] .details h3'))


def test_the_report_shows_the_run(page: Browser, tmp_path: Path) -> None:
    assert page.text("h1") == "coins"
    tiles = dict(zip(page.texts("#tiles dt"), page.texts("#tiles dd"), strict=True))
    assert tiles["RL steps"].startswith("4 of 4")
    assert tiles["Training rollouts"].startswith("192")
    assert tiles["Held-out success"].startswith("81.5%") and "from 13%" in tiles["Held-out success"]
    assert tiles["Saved trees"] == "21"
    ledger = page.texts("#ledger tbody tr")
    assert [row.split("3")[0] for row in ledger[:1]] == ["cold start"] and len(ledger) == 4
    titles = page.texts("#charts figcaption")
    assert any(title.startswith("Held-out success") for title in titles)
    assert not any("KL" in title for title in titles)  # it was never finite
    assert len(page.all("#charts svg")) >= len(titles) >= 8
    bands = page.script(
        "return document.querySelectorAll('#charts figure:first-child [aria-label=area] path').length"
    )
    assert bands == 1
    searches = page.script("return shown.index.trees.map((t) => t.searches).reduce((a, b) => a + b)")
    assert f"Searches in saved trees{searches}" in page.text("#localization-tiles")
    assert page.texts("#tool-table tbody th") == ["python", "(unknown)"]  # the second: confidential
    page.screenshot("report", tmp_path)


def test_filters_narrow_the_gallery(page: Browser) -> None:
    from selenium.webdriver.support.ui import Select

    def cards() -> list[str]:
        return page.script("return [...document.querySelectorAll('.card')].map((c) => c.dataset.key)")

    assert len(cards()) == 21
    Select(page.one("#filter-phase")).select_by_value("evaluation")
    assert cards() == [f"0-evaluation-{step}-{i}" for step in (0, 2, 4) for i in (0, 1)]
    Select(page.one("#filter-step")).select_by_value("2")
    page.one("#filter-problem").send_keys("bag-401")
    assert cards() == ["0-evaluation-2-1"]
    assert page.text("#num-trees").startswith("1 of 21 trees")
    page.click("#filters button")
    assert len(cards()) == 21
    Select(page.one("#filter-outcome")).select_by_value("found")
    found = page.script("return shown.index.trees.filter((t) => t.found).map((t) => t.key)")
    assert cards() == found and 0 < len(found) < 21
    assert len(page.all(".card .critical-mark")) >= len(found)
    Select(page.one("#filter-outcome")).select_by_value("failed")
    assert "0-rl-5-1" in cards() and "0-rl-5-0" not in cards()


def test_every_number_of_figure_4_can_be_read(page: Browser, tmp_path: Path) -> None:
    """Through card, tree and click: the 116 numbers of the paper's tree."""
    page.click('.card[data-key="0-rl-5-0"]')
    page.until(lambda: page.texts(".details h3"))
    figure = Figure4()
    figure.fill()
    compared = 0
    for node in FIGURE4["nodes"]:
        if node["printed"] is None:
            continue
        page.script(
            "document.querySelector(`[data-node='${arguments[0]}'] .box`)"
            ".dispatchEvent(new MouseEvent('click', {bubbles: true}))",
            figure.index[node["id"]],
        )
        shown = page.numbers()
        names = {"R": "reward R", "A": "advantage A", "branch": "branch", "traj": "trajectory"}
        for name, value in node["printed"].items():
            assert shown[names[name]].replace("\u2212", "-") == f"{value:.3f}", (node["id"], name)
            compared += 1
    assert compared == 116
    critical = page.script(
        "return [...document.querySelectorAll('.node.critical')].map((n) => +n.dataset.node)"
    )
    searches = figure4_tree().localizations
    assert sorted(critical) == sorted({search.critical for search in searches})
    assert len(page.all(".node .probe-badge")) == len({p.anchor for s in searches for p in s.probes})
    assert len(page.all(".end .solved")) == 2 and len(page.all(".end .failed")) == 14
    page.press("c")
    assert "critical step of rollout" in page.text(".marks") and "relaxed to 0.685" in page.text(".marks")
    page.press("0")
    page.screenshot("figure4", tmp_path)


def test_a_step_shows_thought_code_output_and_tokens(page: Browser) -> None:
    from selenium.webdriver.support.ui import Select

    open_tree(page, "0-rl-1-0", step=0)
    assert page.text(".thought") == "next"
    assert page.text(".code").startswith("bag.append(")
    assert page.text(".output").startswith("[") and page.text(".status") == "ok"
    tokens = "".join(page.texts(".tokens .token"))
    assert "<tool_call>" in tokens and tokens.startswith("next")
    assert page.texts(".tokens .feedback") != []

    def colors(selector: str) -> set[str]:
        found = page.script("return [...document.querySelectorAll(arguments[0])].map((e) => "
                            "getComputedStyle(e).backgroundColor)", selector)  # fmt: skip
        return set(found)

    clear = "rgba(0, 0, 0, 0)"
    assert page.numbers()["advantage A"] != "0.000"
    assert len(colors(".token:not(.feedback)")) == 1 and clear not in colors(".token:not(.feedback)")
    assert colors(".token.feedback") == {clear}  # never trained on
    Select(page.one("#color-tokens")).select_by_value("entropy")
    assert len(colors(".token:not(.feedback)")) > 2
    Select(page.one("#color-tokens")).select_by_value("low")
    relaxed = page.script("return panes[0].tree.nodes.map((n) => n.relaxed)")
    low = page.script("return panes[0].tree.nodes.map((n) => n.credit.low)")
    assert relaxed == [value < 0.75 for value in low] and len(set(relaxed)) == 2
    for wanted in (True, False):
        open_tree(page, "0-rl-1-0", step=relaxed.index(wanted))
        page.until(lambda wanted=wanted: bool(page.all(".token.wide")) == wanted)
        assert (colors(".token:not(.feedback)") != {clear}) == wanted
    assert len(page.all(".edge.searched")) > 0
    Select(page.one("#color-tokens")).select_by_value("advantage")


def test_text_of_a_model_stays_text(page: Browser) -> None:
    open_tree(page, "0-rl-5-1", step=0)
    shown = HOSTILE.replace("\ud800", "?")
    assert page.text(".output") == shown and page.text(".code") == shown
    assert page.text(".status") == "program error"
    assert page.script("return document.querySelectorAll('.pane img, .pane b, .pane script').length") == 0
    assert (
        page.script("return getComputedStyle(document.querySelector('.output')).overflowWrap") == "anywhere"
    )
    width = page.script("return document.documentElement.scrollWidth - innerWidth")
    assert width <= 0, "long text widens the page"


def test_a_confidential_problem_shows_numbers_only(page: Browser) -> None:
    open_tree(page, "0-rl-5-2", step=0)
    assert "confidential" in page.text(".pane-head")
    assert "no text of it is stored" in page.text(".details")
    assert page.numbers()["sampled tokens"]
    body = page.script("return document.body.innerText")
    assert "canary" not in body and "bag.append" not in body


def test_two_steps_of_the_same_problem_side_by_side(page: Browser, tmp_path: Path) -> None:
    open_tree(page, "0-evaluation-0-1")
    page.one("#compare").click()
    page.until(lambda: len(page.all(".pane .details h3")) == 2)
    keys = page.script("return [...document.querySelectorAll('.pane')].map((p) => p.dataset.key)")
    assert keys == ["0-evaluation-0-1", "0-evaluation-4-1"]
    heads = page.texts(".pane-head .legend")
    assert "held-out step 0" in heads[0] and "held-out step 4" in heads[1]
    assert page.text(".pane select option:checked").startswith("bag-401")
    assert "advantage A" not in page.numbers()  # nothing was trained on these
    page.screenshot("side-by-side", tmp_path)
    page.one("#compare").click()
    page.until(lambda: len(page.all(".pane")) == 1)


def test_the_keyboard_is_enough(page: Browser) -> None:
    from selenium.webdriver import Keys

    page.press("/")
    assert page.script("return document.activeElement.id") == "filter-problem"
    page.press(*"bag-10")
    card = '.card[data-key="0-rl-1-0"]'
    for _ in range(9):
        if page.script("return document.activeElement.dataset.key") == "0-rl-1-0":
            break
        page.press(Keys.TAB)
    assert page.script("return document.activeElement.matches(arguments[0])", card)
    page.press(Keys.ENTER)
    page.until(lambda: page.texts(".details h3"))

    def node() -> int:
        return page.script("return panes[0].node")

    critical = page.script("return panes[0].tree.searches[0].critical")
    assert node() == critical  # where a search ended is where one looks first
    parents = page.script("return panes[0].tree.nodes.map((n) => n.parent)")
    page.press(Keys.ARROW_RIGHT)
    assert parents[node()] == critical
    assert page.script("return document.activeElement.dataset.node") == str(node())
    assert page.script("return document.activeElement.getAttribute('aria-label')").startswith("Step ")
    page.press(Keys.ARROW_LEFT)
    assert node() == critical
    page.press(Keys.ARROW_UP, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert f"step={node()}" in page.script("return location.hash")
    page.press("c")
    assert node() in page.script("return panes[0].tree.searches.map((s) => s.critical)")
    page.press("n")
    page.until(lambda: page.script("return panes[0]?.key") == "0-rl-1-1" and page.texts(".details h3"))
    page.press("p")
    page.until(lambda: page.script("return panes[0]?.key") == "0-rl-1-0" and page.texts(".details h3"))
    page.press("?")
    assert page.one("#help-dialog").is_displayed()
    page.press(Keys.ESCAPE)
    assert not page.one("#help-dialog").is_displayed()
    page.press(Keys.ESCAPE)
    page.until(lambda: page.one("#report").is_displayed())
    page.until(lambda: page.script("return document.activeElement.dataset.key") == "0-rl-1-0")


def contrast(page: Browser, selector: str) -> float:
    """WCAG's contrast of an element's text against what is behind it, 1 to 21."""
    ink, ground = page.script(
        """
        const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        const rgb = (color) => {
          canvas.clearRect(0, 0, 1, 1);
          canvas.fillStyle = color;
          canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data];
        };
        let at = document.querySelector(arguments[0]);
        const style = getComputedStyle(at), ink = rgb(at instanceof SVGElement ? style.fill : style.color);
        if (at instanceof SVGElement) {
          return [ink, rgb(getComputedStyle(at.closest('.node').querySelector('.box')).fill)];
        }
        while (rgb(getComputedStyle(at).backgroundColor)[3] < 255) at = at.parentElement;
        return [ink, rgb(getComputedStyle(at).backgroundColor)];
        """,
        selector,
    )

    def luminance(color: list[int]) -> float:
        channels = np.array(color[:3]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_light_and_dark_can_be_read(page: Browser, tmp_path: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page.color_scheme(scheme)
        open_tree(page, "0-rl-5-0", step=0)
        grounds.append(page.script("return getComputedStyle(document.body).backgroundColor"))
        for selector in (".details h3", ".numbers dt", ".numbers dd", "#subtitle", "pre", "nav a",
                         ".marks .tone-critical", ".marks .tone-probe", ".node.good .what", ".node.bad .what",
                         ".node.bad .sign", ".node.good .minor", ".node.bad .minor"):  # fmt: skip
            assert contrast(page, selector) >= 4.5, (scheme, selector)
        page.screenshot(f"viewer-{scheme}", tmp_path)
    assert grounds[0] != grounds[1]
    page.press("d")
    assert page.script("return getComputedStyle(document.body).backgroundColor") == grounds[0]


def test_marks_have_shapes_not_only_colours(page: Browser) -> None:
    paths = page.script("return [SIGNS.solved, SIGNS.failed, SIGNS.stopped, SIGNS.critical]")
    assert len(set(paths)) == 4
    open_tree(page, "0-rl-5-0", step=0)
    legend = page.text(".stage .legend")
    for word in ("solved", "failed", "no answer", "critical", "searched"):
        assert word in legend
    for badge, word in ((".critical-badge", "critical"), (".probe-badge", "probe")):
        assert all(word in text for text in page.texts(f"{badge} text"))
    dashes = page.script("return getComputedStyle(document.querySelector('.edge.searched')).strokeDasharray")
    assert dashes != "none"


def test_two_hundred_trees_open_within_two_seconds(browser: Browser, tmp_path: Path, run: RunFolder) -> None:
    folder = RunFolder(tmp_path / "large")
    folder.prepare(run.config())
    tokenizer = AutoTokenizer.from_pretrained(run.checkpoints / "rl-000004" / "model")
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
