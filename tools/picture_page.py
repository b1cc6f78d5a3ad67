"""Take the pictures of the page that the documentation shows: `picture_page.py [--minutes N]` writes docs/page*.png.

It runs the daemon with the demo model on pictures that it draws, some every few seconds, and looks at it with chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Route, sync_playwright

from florence_daemon.demo_chance import draw_picture
from florence_daemon.demo_pictures import encode_picture

# A large one, wider than high.
ASKED = 19
DOCS = Path(__file__).parents[1] / "docs"
# What the pictures show instead of this machine's own directory.
SHOWN = "/home/you/Pictures"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


def main() -> None:
    """Run the daemon, let it work for a while, take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long pictures come in: what the plot shows")
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as home:
        process, url = start(Path(home))
        try:
            inbox = Path(home) / "inbox"
            (inbox / "IMG_2041.jpg").write_bytes(picture(random.Random(2041))[:2000])
            bring(inbox, minutes)
            wait_until_done(url)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
                for name, options in looks():
                    take(browser, url, home, DOCS / name, **options)
                browser.close()
        finally:
            process.terminate()
            process.wait()


def start(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the daemon on an empty folder; return it and its address."""
    for name in ("inbox", "training"):
        (home / name).mkdir()
    folders = [{"path": str(home / name), "settle_s": 0.3} for name in ("inbox", "training")]
    config = {"model": {"name": "demo"}, "state": {"dir": str(home / "state")}, "folders": folders}
    (home / "config.yaml").write_text(json.dumps(config))
    log = home / "log"
    command = [sys.executable, "-m", "florence_daemon", "run", "--port", "0", "--config", str(home / "config.yaml")]
    process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT, env=dict(os.environ))
    while not (found := re.search(r"answers at (http://\S+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    return process, found[1]


def bring(inbox: Path, minutes: float) -> None:
    """Write drawn pictures for so long, now more of them, now fewer; the last ones are always the same."""
    chance = random.Random(7)
    end_s = time.monotonic() + 60 * minutes
    number = 100
    while time.monotonic() < end_s:
        for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
            number += 1
            (inbox / f"sketch-{number}.jpg").write_bytes(picture(chance))
        time.sleep(chance.uniform(1, 12))
    for number in range(1, 13):
        (inbox / f"drawing-{number:02}.jpg").write_bytes(picture(random.Random(number), (960, 720)))
        time.sleep(0.3)


def picture(chance: random.Random, size_px: tuple[int, int] | None = None) -> bytes:
    """A picture of coloured shapes, which the demo model knows."""
    return encode_picture(draw_picture(chance, size_px).image, "JPEG")


def wait_until_done(url: str) -> None:
    """Wait until nothing is left to do."""
    while True:
        with urllib.request.urlopen(f"{url}/status") as response:  # noqa: S310 - our own daemon
            queue = json.load(response)["queue"]
        if queue["captioned"] >= 12 and not any(queue[name] for name in ("folder", "running", "settling")):
            return
        time.sleep(0.2)


def looks() -> list[tuple[str, dict[str, Any]]]:
    """The pictures by name, with what each is seen with."""
    desktop = {"viewport": {"width": 1280, "height": 1360}}
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
    return [
        ("page.png", desktop | {"color_scheme": "light"}),
        ("page-dark.png", desktop | {"color_scheme": "dark"}),
        ("page-phone.png", phone | {"color_scheme": "light"}),
    ]


def take(browser: Browser, url: str, home: str, path: Path, **options: Any) -> None:
    """Open the page, ask where the objects of a picture are, and take its picture."""
    context = browser.new_context(**options, reduced_motion="reduce")
    page = context.new_page()
    page.route("**/overview", lambda route: _rename(route, home))
    page.goto(url)
    page.locator(".card").first.wait_for()
    page.locator("#file").set_input_files(
        {"name": "table.jpg", "mimeType": "image/jpeg", "buffer": picture(random.Random(ASKED))}
    )
    page.get_by_label("Prompt").select_option("<OD>")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#overlay text").first.wait_for()
    _wait_for_thumbnails(page)
    page.mouse.move(0, 0)
    page.screenshot(path=path)
    page.unroute_all(behavior="wait")
    context.close()


def _wait_for_thumbnails(page: Page) -> None:
    """Wait until every thumbnail that can be seen is there, and what was said is gone."""
    is_quiet = """() => !document.getElementById("said").textContent &&
      [...document.querySelectorAll(".thumbnail")].every((frame) => {
        return frame.getBoundingClientRect().top > innerHeight || frame.querySelector("img")?.naturalWidth > 0;
      })"""
    while not page.evaluate(is_quiet):
        time.sleep(0.1)


def _rename(route: Route, home: str) -> None:
    answer = route.fetch()
    route.fulfill(response=answer, body=answer.text().replace(home, SHOWN))


if __name__ == "__main__":
    main()
