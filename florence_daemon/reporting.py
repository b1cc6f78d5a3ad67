"""What a person sees of a long run: a bar with rate and estimate on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

# Seconds between two plain lines: a log should show that it goes on, not fill up.
LINE_S = 10.0


class Progress(Protocol):
    """Shows how far a run over `total` images is."""

    def advance(self, count: int = 1, *, failed: bool) -> None:
        """So many images more have ended."""

    def close(self) -> None:
        """The run has ended."""


def open_progress(total: int) -> Progress:
    """A bar when standard error is a terminal, else a line every ten seconds."""
    return BarProgress(total) if sys.stderr.isatty() else LineProgress(total, _to_stderr, time.monotonic)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass
class Pace:
    """How many images ended since the start, how fast, and how long the rest will take."""

    total: int
    started_s: float
    ended: int = 0
    failed: int = 0

    def say(self, now_s: float) -> str:
        """`40 of 200 images, 3.1 images/s, 0:00:52 left, 1 failed`"""
        elapsed_s = now_s - self.started_s
        parts = [f"{self.ended} of {self.total} images"]
        if self.ended and elapsed_s > 0:
            rate = self.ended / elapsed_s
            parts.append(f"{rate:.1f} images/s" if rate >= 1 else f"{1 / rate:.1f} s per image")
            if self.ended < self.total:
                parts.append(f"{timedelta(seconds=round((self.total - self.ended) / rate))} left")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)


class LineProgress:
    """Plain lines, for logs and pipes."""

    def __init__(self, total: int, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._pace = Pace(total, clock())
        self._next_line_s = clock() + LINE_S

    def advance(self, count: int = 1, *, failed: bool) -> None:
        """Count, and say so when it is time; the last one is left to `close`."""
        self._pace.ended += count
        self._pace.failed += count * failed
        now_s = self._clock()
        if now_s >= self._next_line_s and self._pace.ended < self._pace.total:
            self._write(self._pace.say(now_s))
            self._next_line_s = now_s + LINE_S

    def close(self) -> None:
        """Say where it ended."""
        self._write(self._pace.say(self._clock()))


class BarProgress:
    """A bar, for a terminal."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        columns: list[Any] = [BarColumn(), TextColumn("{task.description}")]
        self._bar = RichProgress(*columns, console=Console(stderr=True))
        self._pace = Pace(total, time.monotonic())
        self._task = self._bar.add_task(self._pace.say(time.monotonic()), total=total)
        self._bar.start()

    def advance(self, count: int = 1, *, failed: bool) -> None:
        """Move the bar."""
        self._pace.ended += count
        self._pace.failed += count * failed
        self._bar.update(self._task, advance=count, description=self._pace.say(time.monotonic()))

    def close(self) -> None:
        """Leave the bar as it is and go on below it."""
        self._bar.stop()
