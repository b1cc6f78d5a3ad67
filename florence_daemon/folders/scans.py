"""The scans of one folder: when they are due, and how they go on in slices, with a bounded number of images waiting."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator

from florence_daemon.config import FolderConfig
from florence_daemon.folders.health import OK, Health
from florence_daemon.folders.scan import Listing, list_directories

log = logging.getLogger(__name__)

# A scan does this much at a time, then events and ready files get their turn.
SLICE_S = 0.05
# A scan that took t seconds is not begun again before 9 t have passed, however short the interval is.
REST_PER_SCAN = 9.0
# Seconds after which a scan that failed is begun again.
FAILED_S = 10.0


class Scans:
    """Scans under way below one folder. One thread owns it; times are seconds of `clock`."""

    def __init__(
        self,
        folder: FolderConfig,
        lacking: Callable[[Listing], Iterable[str]],
        clock: Callable[[], float],
        jitter: Callable[[], float],
        leave_out: Collection[str] = (),
    ) -> None:
        """lacking: which images of a directory need something. leave_out: directories that others see to."""
        self.health = OK
        self.next_s = 0.0
        self._folder = folder
        self._path = os.fspath(folder.path)
        self._lacking = lacking
        self._clock = clock
        self._jitter = jitter
        self._leave_out = leave_out
        self._under_way: dict[str, Iterator[str | None]] = {}
        self._again: set[str] = set()
        self._took_s = 0.0
        self._unreadable: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._under_way)

    def ask(self, start: str) -> None:
        """Scan below `start`; once more when that is under way already."""
        if start in self._under_way:
            self._again.add(start)
            return
        if start == self._path:
            self._took_s, self._unreadable = 0.0, []
            self.next_s = float("inf")
        self._under_way[start] = self._candidates(start)

    def drop(self) -> None:
        """Give up what is under way."""
        self._under_way.clear()
        self._again.clear()
        self.next_s = 0.0

    def step(self, room: int, take: Callable[[str], bool]) -> bool:
        """Go on for a moment, or until there is no more room; True when the scan of the whole folder has ended.

        take: is given each image that lacks something, and tells whether it took a place of the room.
        """
        begun_s = self._clock()
        has_ended = False
        while self._under_way and room > 0 and self._clock() < begun_s + SLICE_S:
            start = next(iter(self._under_way))
            try:
                path = next(self._under_way[start], "")
            except Exception:
                self._end(start)
                self.next_s = self._clock() + FAILED_S
                raise
            if path:
                room -= take(path)
            elif path == "":
                self._end(start)
                has_ended = has_ended or start == self._path
        self._took_s += self._clock() - begun_s
        return has_ended

    def rest(self, now_s: float, interval_s: float, *, spread: bool) -> None:
        """Let the next scan of the whole folder be due after the interval; spread: ± 25 %.

        Spread, a hundred folders on one disk do not stay in step.
        """
        factor = 0.75 + 0.5 * self._jitter() if spread else 1.0
        self.next_s = now_s + max(factor * interval_s, REST_PER_SCAN * self._took_s)

    def _end(self, start: str) -> None:
        del self._under_way[start]
        if start == self._path:
            self._note_health()
        if start in self._again:
            self._again.discard(start)
            self.ask(start)

    def _candidates(self, start: str) -> Iterator[str | None]:
        """The images below `start` that lack something, and None after each directory."""
        for listing in list_directories(self._folder, start, self._note_unreadable, self._leave_out):
            for name in self._lacking(listing):
                yield listing.path(name)
            yield None

    def _note_unreadable(self, error: OSError) -> None:
        """A directory that went away in the meantime is no matter; one that is forbidden is."""
        if not isinstance(error, FileNotFoundError):
            self._unreadable.append(f"{error.filename}: cannot be looked into: {error.strerror}")

    def _note_health(self) -> None:
        more = f" (and {len(self._unreadable) - 1} more)" if len(self._unreadable) > 1 else ""
        health = Health("degraded", self._unreadable[0] + more) if self._unreadable else OK
        if health != self.health and health != OK:
            log.warning("%s", health.reason)
        self.health = health
