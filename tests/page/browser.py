"""The page in Debian's chromium: nothing that a test does there may bring an error or a request to elsewhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
TIMEOUT_MS = 60_000
REFUSED = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")
CUT_OFF = "Failed to load resource: net::ERR_FAILED"
TELL_OF_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`);
});
"""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start chromium; skips where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium command")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS), timeout=3 * TIMEOUT_MS)
        yield browser
        browser.close()


@contextmanager
def visit(
    browser: Browser, url: str, *, refused: Collection[int] = (), is_cut_off: bool = False, **options: Any
) -> Iterator[Page]:
    """Open the page, and hold it to its word when the test is done with it.

    refused: statuses that the test brings about; chromium tells of them as of errors. is_cut_off: the test has requests
    fail. options: of the context.
    """
    context = browser.new_context(**({"viewport": DESKTOP} | options))
    context.set_default_timeout(TIMEOUT_MS)
    context.add_init_script(TELL_OF_VIOLATIONS)
    page = context.new_page()
    wrong: list[str] = []

    def hear(kind: str, text: str) -> None:
        told = REFUSED.match(text)
        is_meant = (told is not None and int(told[1]) in refused) or (is_cut_off and text.startswith(CUT_OFF))
        if kind in ("error", "warning") and not is_meant:
            wrong.append(text)

    page.on("console", lambda message: hear(message.type, message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not _is_ours(request.url, url) else None)
    page.goto(url)
    yield page
    context.close()
    assert wrong == []


def check_accessible(page: Page) -> None:
    """Have axe look the page over, by WCAG 2.2 AA and its best practices."""
    found = Axe().run(page, options={"resultTypes": ["violations"]})
    told = [
        f"{each['id']}: {node['html']} {node['failureSummary']}"
        for each in found.response["violations"]
        for node in each["nodes"]
    ]
    assert told == []


def is_wider_than_its_window(page: Page) -> bool:
    """Tell whether there is anything to scroll to at the side."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def _is_ours(address: str, url: str) -> bool:
    return address.startswith((f"{url}/", f"blob:{url}/"))
