"""The report page in a real browser: opened, clicked through, typed at, looked at.

ELPO_SCREENSHOTS=DIR keeps the pictures.
"""

from __future__ import annotations

from pathlib import Path

from tests.trees import FIGURE4, Figure4
from tests.viz.browser import NEEDS_BROWSER, Browser, open_tree
from tests.viz.runs import HOSTILE, figure4_tree

pytestmark = NEEDS_BROWSER


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
