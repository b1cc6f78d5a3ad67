"""How a folder's changes become known: told by events, found by looking again and again, or both; and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from florence_daemon.config import FolderConfig
from florence_daemon.folders.events import Events, News
from florence_daemon.folders.health import OK, Health
from florence_daemon.folders.inotify import limit_reached
from florence_daemon.folders.mounts import Place

log = logging.getLogger(__name__)

# Seconds until events that were refused are tried again; twice as long each time, up to the longest, since each try
# walks through the folder.
RETRY_S = 10.0
LONGEST_RETRY_S = 300.0
# So many events may be a sign that the kernel's queue overflowed (it holds 16,384, and watchdog 6 says nothing): the
# folder is scanned once no more have come for a while, and after the longest while in any case.
BURST = 1_000
CALM_S = 3.0
LONGEST_BURST_S = 60.0
# Events that come more slowly than this are no burst.
FORGET_S = 10.0


class Listening:
    """What one folder's thread knows of events. Limits make it poll and `degraded`; it goes back when it can."""

    def __init__(
        self,
        folder: FolderConfig,
        wake: Callable[[], None],
        limit_reached: Callable[[str], str] = limit_reached,
    ) -> None:
        """limit_reached: says which limit keeps a path from being watched, as `inotify.limit_reached`."""
        self.health = OK
        self._folder = folder
        self._path = os.fspath(folder.path)
        self._limit_reached = limit_reached
        self._events = Events(wake)
        self._place: Place | None = None
        self._retry_s = RETRY_S
        self._next_try_s = 0.0
        self._burst = 0
        self._burst_since_s = 0.0
        self._heard_s = 0.0

    def attend(self, place: Place, now_s: float) -> None:
        """Listen to the folder as it is now: new, replaced or mounted anew."""
        self._place = place
        self._retry_s = RETRY_S
        self.restart(now_s)

    def stop(self) -> None:
        """Listen no more."""
        self._events.stop()
        self._place = None

    def check(self, now_s: float) -> bool:
        """See to events that ended or were refused; True when they were started anew, so that a scan is due."""
        if not self._wants_events():
            return False
        if self._events.is_started and not self._events.is_alive():
            log.warning("%s: the events of the file system had stopped; they are started again", self._path)
        elif self._events.is_started and self.health == OK:
            self._note_limit()
            return False
        elif now_s < self._next_try_s or self._limit_reached(self._path):
            return False
        self.restart(now_s)
        return True

    def restart(self, now_s: float) -> None:
        """Start events anew, or stop them where none are wanted; all is well only once that is done."""
        if not self._wants_events():
            self._events.stop()
            self.health = OK
        else:
            try:
                self._events.start(self._path, recursive=self._folder.recursive)
            except OSError as error:
                self._degrade(self._limit_reached(self._path) or str(error.strerror or error))
            else:
                self._note_limit()
            self._next_try_s = now_s + self._retry_s
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
        if self.health == OK:
            log.info("%s: %s", self._path, self.describe())

    def take(self, now_s: float) -> News:
        """Hand over what was heard since the last time."""
        news = self._events.take()
        if news.count:
            if self._burst == 0 or (self._burst < BURST and now_s >= self._heard_s + FORGET_S):
                self._burst, self._burst_since_s = 0, now_s
            self._heard_s = now_s
            self._burst += news.count if news.is_whole else BURST
        return news

    def burst_ends_s(self) -> float | None:
        """When a scan is due because so many events came that some may be lost; None when they did not."""
        if self._burst < BURST:
            return None
        return min(self._heard_s + CALM_S, self._burst_since_s + LONGEST_BURST_S)

    def forget_burst(self) -> None:
        """Note that the scan after a burst has begun."""
        self._burst = 0

    @property
    def is_polled(self) -> bool:
        """Tell whether the folder is scanned every `poll_s` instead of every `rescan_s`."""
        lacks_events = self.health != OK or self._silent_kind() != ""
        return self._folder.poll == "always" or (self._folder.poll == "auto" and lacks_events)

    @property
    def interval_s(self) -> float:
        """Seconds between two scans of the whole folder."""
        return self._folder.poll_s if self.is_polled else self._folder.rescan_s

    def describe(self) -> str:
        """How changes are noticed, for people."""
        scanned = f"scanned every {self.interval_s:g} s"
        kind = self._silent_kind()
        because = f" ({kind} does not tell of every change)" if kind else ""
        return f"told of changes, and {scanned}{because}" if self._events.is_started else f"{scanned}{because}"

    def _wants_events(self) -> bool:
        """A network file system's own events tell of this machine's changes only: it is scanned often instead."""
        if self._place is None or self._folder.poll == "always":
            return False
        own = self._place.own
        return self._folder.poll == "never" or own is None or own.sends_events

    def _silent_kind(self) -> str:
        return self._place.silent_kind() if self._place is not None else ""

    def _note_limit(self) -> None:
        """At the limit directories are left unwatched without a word, so being there is taken for that."""
        limit = self._limit_reached(self._path)
        if limit:
            self._degrade(limit)
        else:
            self.health = OK

    def _degrade(self, reason: str) -> None:
        before, self.health = self.health, Health("degraded", f"not all changes are told of: {reason}")
        if self.health != before:
            log.warning("%s: %s; it is %s", self._path, self.health.reason, self.describe())
