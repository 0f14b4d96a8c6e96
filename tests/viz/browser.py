"""A headless Chromium for the tests of the page, or the reason why there is none."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")


def why_not() -> str:
    """Why the page cannot be tested here; empty where it can."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed (pip install selenium)"
    if CHROMIUM is None or CHROMEDRIVER is None:
        return "there is no chromium with its chromedriver (apt install chromium chromium-driver)"
    return ""


NEEDS_BROWSER = pytest.mark.skipif(bool(why_not()), reason=why_not())


class Browser:
    """A page as a person meets it: what it shows, what was clicked and typed."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, place: Path | str) -> None:
        self.driver.get(place.as_uri() if isinstance(place, Path) else place)
        self.until(lambda: self.script("return document.documentElement.dataset.ready"))

    def script(self, source: str, *arguments: Any) -> Any:
        return self.driver.execute_script(source, *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.script("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector: str) -> list[str]:
        return self.script(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector
        )

    def click(self, selector: str) -> None:
        """Brings it into the middle, where no header is in the way, and clicks."""
        found = self.one(selector)
        self.script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", found)
        found.click()

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def until(self, true: Callable[[], Any], seconds: float = 20) -> Any:
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, "the page does not come to it"
            time.sleep(0.03)
        return found

    def numbers(self) -> dict[str, str]:
        """The numbers of the chosen step, by their names."""
        return self.script(
            "return Object.fromEntries([...document.querySelectorAll('.numbers div')]"
            ".map((d) => [d.children[0].textContent, d.children[1].textContent]))"
        )

    def color_scheme(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def complaints(self) -> list[str]:
        """What the console got since the last call: errors, refused scripts, requests that failed."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def screenshot(self, name: str, folder: Path) -> Path:
        """A picture in the folder ELPO_SCREENSHOTS names, or else in `folder`."""
        file = Path(os.environ.get("ELPO_SCREENSHOTS") or folder) / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        time.sleep(0.3)
        file.write_bytes(self.driver.get_screenshot_as_png())
        return file


def open_tree(page: Browser, key: str, **more: Any) -> None:
    address = "&".join([f"tree={key}", *(f"{name}={value}" for name, value in more.items())])
    page.script("location.hash = arguments[0]", address)
    page.until(lambda: page.texts(f'.pane[data-key="{key}"] .details h3'))


@contextmanager
def chromium() -> Iterator[Browser]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # --no-sandbox: as root, as in most containers, Chromium refuses its own; the page is ours
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Service(CHROMEDRIVER), options=options)
    try:
        browser = Browser(driver)
        browser.size(1440, 900)
        browser.color_scheme("light")
        yield browser
    finally:
        driver.quit()
