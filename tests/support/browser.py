"""Headless Chromium, driven by selenium; tests that need it are skipped where either is missing."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Web components keep their content in shadow roots, which document.body.innerText leaves out.
_TEXT = """
const read = node => node.nodeType === 3 ? node.textContent :
  ["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName) ? "" :
  [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].map(read).join(" ");
return read(document.body);
"""
_IMAGES = """
const found = [];
const look = node => {
  if (node.nodeName === "IMG" && node.complete && node.naturalWidth > 1) found.push(node.src);
  [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].forEach(look);
};
look(document.body);
return found;
"""


class Page:
    """A page that is open."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get(address)

    def text(self) -> str:
        """All text of the page, in one line."""
        return " ".join(self.driver.execute_script(_TEXT).split())

    def images(self) -> list[str]:
        """The addresses of all images that have come."""
        found: list[str] = self.driver.execute_script(_IMAGES)
        return found

    def save(self, file: Path) -> None:
        """An image of what is seen."""
        self.driver.save_screenshot(str(file))

    def wait(self, is_there: Callable[[], Any], seconds: float = 30) -> Any:
        """What `is_there` gives, once that is something; else what it gave last."""
        deadline = time.monotonic() + seconds
        while not (found := is_there()) and time.monotonic() < deadline:
            time.sleep(0.3)
        return found


@contextmanager
def browser(width: int = 1400, height: int = 1000) -> Iterator[Page]:
    """Chromium with an empty profile, which talks to nobody but to who is asked."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver_program = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("there is no Chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--window-size={width},{height}",
    ):  # fmt: skip
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_program))
    try:
        yield Page(driver)
    finally:
        driver.quit()
