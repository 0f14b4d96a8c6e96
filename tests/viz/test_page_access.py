"""The report page for the keyboard, in the dark, and for those who see no colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.viz.browser import NEEDS_BROWSER, Browser, open_tree

pytestmark = NEEDS_BROWSER


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
