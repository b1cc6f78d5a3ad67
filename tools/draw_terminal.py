"""Draw docs/demo.svg: what a person sees of the daemon in a terminal, recorded from the real commands.

    .venv/bin/python tools/draw_terminal.py docs/demo.svg

The one thing that is changed is where it happens: the temporary directory is shown as a home.
"""

from __future__ import annotations

import os
import pty
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from rich.console import Console
from rich.text import Text

from florence_daemon.demo_chance import draw_picture

COLUMNS = 116
HOME = "/home/anna"
PROMPT = "\x1b[32m$\x1b[0m "
PROGRAM = [sys.executable, "-m", "florence_daemon"]
# What the log says while pictures are captioned is no shorter for being true.
LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d ")


class Recording:
    """What a command writes to a terminal of its own."""

    def __init__(self, words: Sequence[str], directory: Path, environ: dict[str, str]) -> None:
        self._terminal, end = pty.openpty()
        self._said = b""
        self.process = subprocess.Popen(words, cwd=directory, env=environ, stdin=end, stdout=end, stderr=end)
        os.close(end)
        self._thread = Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while said := os.read(self._terminal, 65536):
                self._said += said
        except OSError:  # Linux says so when the other end is closed
            pass
        os.close(self._terminal)

    def text(self) -> str:
        """What it has written by now."""
        return self._said.decode().replace("\r\n", "\n")

    def wait(self) -> str:
        """What it wrote until it ended."""
        self.process.wait()
        self._thread.join()
        return self.text()


@contextmanager
def running(words: Sequence[str], directory: Path, environ: dict[str, str]) -> Iterator[Recording]:
    """A command that goes on until it is stopped."""
    recording = Recording(words, directory, environ)
    try:
        yield recording
    finally:
        recording.process.terminate()
        recording.wait()


def record(directory: Path) -> str:
    """Start the daemon on a folder, drop two pictures, look at it; return all that was seen."""
    inbox = directory / "inbox"
    inbox.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    environ = kept | {"HOME": str(directory), "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    with running([*PROGRAM, "run", "--model", "demo", "--watch", "inbox"], directory, environ) as daemon:
        _wait_until(lambda: "answers at" in daemon.text())
        _draw_pictures(inbox)
        _wait_until(lambda: len(list(inbox.glob("*.tag"))) == 2 and "broken.jpg: not captioned" in daemon.text())
        seen = [f"{PROMPT}florence-daemon run --model demo --watch inbox", _without_log(daemon.text())]
        for command in ("florence-daemon status", "florence-daemon ps", "cat inbox/shapes.txt inbox/shapes.tag"):
            first, *words = command.split()
            program = PROGRAM if first == "florence-daemon" else [first]
            seen += [PROMPT + command, Recording([*program, *words], directory, environ).wait()]
    return "\n".join(part.strip("\n") + ("\n" if not part.startswith(PROMPT) else "") for part in seen)


def _without_log(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not LOG_LINE.match(line) and not line.startswith("    "))


def _draw_pictures(inbox: Path) -> None:
    chance = random.Random(7)
    for name in ("circles.jpg", "shapes.png"):
        draw_picture(chance).image.save(inbox / name)
    (inbox / "broken.jpg").write_bytes((inbox / "circles.jpg").read_bytes()[:1000])


def _wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the daemon did not get so far")
        time.sleep(0.1)


def draw(lines: str, title: str) -> str:
    """The SVG; its font is whatever the reader has, so that it loads nothing."""
    console = Console(record=True, width=COLUMNS, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.from_ansi(lines))
    svg = console.export_svg(title=title, unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")


def main() -> None:
    """Record and draw."""
    with tempfile.TemporaryDirectory() as directory:
        seen = record(Path(directory)).replace(directory, HOME)
    print(seen)
    Path(sys.argv[1]).write_text(draw(seen, "Florence Daemon"), encoding="utf-8")


if __name__ == "__main__":
    main()
