"""Watch one folder: events and scans find its pictures, settling makes them ready, and it tells how it is doing.

Events are hints: they may be lost, late or doubled. What a scan finds is the truth, so a folder is scanned at start,
every `rescan_s`, after a burst of events, and whenever its directory or its mounts were replaced.
"""

from __future__ import annotations

import heapq
import logging
import os
import random
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from florence_daemon.config import FolderConfig
from florence_daemon.folders.events import FORGETS_MOVED_IN
from florence_daemon.folders.health import OK, Health, worst
from florence_daemon.folders.listening import Listening
from florence_daemon.folders.mounts import Place, place_of
from florence_daemon.folders.names import is_behind_link, is_settings_file, is_wanted
from florence_daemon.folders.pauses import Pauses
from florence_daemon.folders.scan import Listing
from florence_daemon.folders.scans import Scans
from florence_daemon.folders.settle import Settling, Stamp

log = logging.getLogger(__name__)

# Seconds between two looks whether the folder is still the directory that is watched, and events still arrive.
CHECK_S = 10.0
# Pictures of a folder that wait at once: only these are in memory. A scan goes on when there are fewer.
WINDOW = 2_000
# Events may bring so many more, so that a new picture need not wait for the end of a long first scan.
EVENTS_WINDOW = 8_000
# Seconds until settings are looked at again that were changed a moment ago.
SETTINGS_S = 1.0
# Seconds between two looks whether there is room for a scan to go on.
FULL_S = 0.05


class Intake(Protocol):
    """Where ready files go. Each folder's thread calls it."""

    def waiting(self, folder: FolderConfig) -> int:
        """How many of the folder's images are queued or being captioned."""

    def lacking(self, folder: FolderConfig, listing: Listing) -> Iterable[str]:
        """The images of one directory that still lack something, by name."""

    def scanned(self, folder: FolderConfig) -> None:
        """Hear that all directories of the folder were listed."""

    def needs(self, folder: FolderConfig, path: str) -> bool:
        """Tell whether the image still lacks something; asked before it settles, so it must be cheap."""

    def submit(self, folder: FolderConfig, ready: Iterable[tuple[str, Stamp]]) -> None:
        """Take images that have stopped changing."""

    def look_at_settings(self, folder: FolderConfig, directory: str | None = None) -> bool:
        """Look whether the settings of a directory have changed, or of all that are known to have some.

        True when that must be done again in a moment.
        """

    def renewed(self, folder: FolderConfig) -> Collection[str]:
        """The directories whose own settings have changed since this was asked last."""

    def health(self, folder: FolderConfig) -> Health:
        """Whether the settings in the folder are right."""

    def left(self, folder: FolderConfig) -> None:
        """Hear that the folder is not watched any more, or not with these settings."""


class RootWatcher:
    """One folder. `tick` is one step, on the folder's own thread; everything else may be called from any thread."""

    def __init__(
        self,
        folder: FolderConfig,
        intake: Intake,
        clock: Callable[[], float],
        *,
        inner: Iterable[str] = (),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """inner: paths of other watched folders below this one; they see to themselves. jitter: 0 to 1."""
        self.folder = folder
        self.path = os.fspath(folder.path)
        self.wake = threading.Event()
        self.pauses = Pauses(self.path)
        self.ticked_s: float | None = None
        self.inner = frozenset(inner)
        self.is_over = threading.Event()  # it is watched no more, or by another with other settings
        self._intake = intake
        self._clock = clock
        self._listening = Listening(folder, self.wake.set)
        self._scans = Scans(folder, lambda listing: intake.lacking(folder, listing), clock, jitter, self.inner)
        self._settling = Settling()
        self._later_lock = threading.Lock()
        self._later: list[tuple[float, str]] = []
        self._is_asked = False
        self._place: Place | None = None
        self._place_health = Health("degraded", "not looked at yet")
        self._next_check_s = 0.0
        self._queued = 0

    @property
    def settling(self) -> int:
        """How many files are being waited for."""
        return len(self._settling)

    @property
    def is_scanning(self) -> bool:
        """Tell whether a scan is under way, or waits for room."""
        return bool(self._scans)

    @property
    def is_local(self) -> bool:
        """Tell whether it is there, and all of it on this machine's own file systems, which do answer."""
        place = self._place
        return place is not None and not place.silent_kind()

    def touch(self, path: str, delay_s: float = 0.0) -> None:
        """Look at `path` again after `delay_s`, as if an event had named it."""
        with self._later_lock:
            heapq.heappush(self._later, (self._clock() + delay_s, path))
        self.wake.set()

    def pause(self, path: str, reason: str) -> None:
        """Submit nothing until the directory of `path` can be written again."""
        self.pauses.add(path, reason)
        self.wake.set()

    def rescan(self) -> None:
        """Scan the folder now."""
        self._is_asked = True
        self.wake.set()

    def health(self) -> Health:
        """How it is doing."""
        paused = [Health("degraded", f"paused: {reason}") for reason in self.pauses.reasons()]
        settings = self._intake.health(self.folder)
        return worst([self._place_health, *paused, settings, self._listening.health, self._scans.health])

    def watching(self) -> str:
        """How changes are noticed, for people."""
        return self._listening.describe() if self._place is not None else f"looked for every {CHECK_S:g} s"

    def tick(self, now_s: float) -> float:
        """Do what is due and return when the next step is; events and wishes wake it earlier."""
        self.ticked_s = now_s
        if now_s >= self._next_check_s:
            self._next_check_s = now_s + CHECK_S
            self._check(now_s)
        if self._place is None:
            return self._next_check_s
        # Asked once, not for each event: in this step only `_submit_ready`, at its end, makes more of them wait.
        self._queued = self._intake.waiting(self.folder)
        self._resume(now_s)
        self._hear(now_s)
        self._read_later(now_s)
        for directory in self._intake.renewed(self.folder):
            self._scans.ask(directory)
        self._start_scan_when_due(now_s)
        room = self._room(WINDOW)
        self._scan_on(now_s, room)
        self._submit_ready(now_s)
        return min([*self._due(), *([now_s if room > 0 else now_s + FULL_S] if self._scans else [])])

    def close(self) -> None:
        """Listen no more."""
        self._listening.stop()

    def _due(self) -> list[float]:
        """When something is to be done next."""
        due = [self._next_check_s]
        if not self.pauses.holds_all():
            due.append(self._scans.next_s)
        with self._later_lock:
            due += [due_s for due_s, _ in self._later[:1]]
        others = (self._settling.next_due_s(), self.pauses.next_due_s(), self._listening.burst_ends_s())
        return due + [due_s for due_s in others if due_s is not None]

    def _check(self, now_s: float) -> None:
        """Notice a folder that appeared, went or was replaced, and events that ended; see to both."""
        try:
            place = place_of(self.path)
        except OSError as error:
            self._lose(error)
            return
        if place == self._place:
            self._intake.look_at_settings(self.folder)
            if self._listening.check(now_s):
                self.rescan()
            return
        # Mounted or made anew: what is watched is a directory that is not here any more.
        if self._place is not None:
            log.warning("%s: this folder was replaced or mounted anew; it is watched and scanned again", self.path)
        self._scans.drop()
        self._listening.attend(place, now_s)
        self._place, self._place_health = place, OK  # Now that it is listened to: whoever waits for this may go on.

    def _lose(self, error: OSError) -> None:
        """Note that the folder is not there. What is gone may only be unmounted: nothing is deleted for it."""
        self._listening.stop()
        self._scans.drop()
        self._place = None
        gone = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be looked into ({error.strerror})"
        health = Health("failed", f"this folder {gone}; it is looked for every {CHECK_S:g} s")
        if self._place_health != health:
            log.warning("%s: %s", self.path, health.reason)
        self._place_health = health

    def _resume(self, now_s: float) -> None:
        """Scan what can be written again: what became ready in the meantime was not kept."""
        for directory in self.pauses.tick(now_s):
            log.info("%s: can be written; it goes on", directory)
            self._scans.ask(directory)

    def _hear(self, now_s: float) -> None:
        """Take in what the file system said."""
        news = self._listening.take(now_s)
        for path in news.paths:
            self._consider(path, now_s)
        if news.directories and FORGETS_MOVED_IN:
            # Watching all of it anew misses what happens between the two calls, so all of it is scanned.
            self._listening.restart(now_s)
            self._scans.ask(self.path)
        elif self.folder.recursive:
            # Files that were written before the new directory was watched sent no event.
            for directory in news.directories:
                self._scans.ask(directory)
        ends_s = self._listening.burst_ends_s()
        if ends_s is not None and now_s >= ends_s:
            self._listening.forget_burst()
            self._scans.ask(self.path)

    def _read_later(self, now_s: float) -> None:
        while True:
            with self._later_lock:
                if not self._later or self._later[0][0] > now_s:
                    return
                _, path = heapq.heappop(self._later)
            self._consider(path, now_s)

    def _consider(self, path: str, now_s: float) -> None:
        """Let an image settle that an event named; look at settings that one named."""
        if is_settings_file(self.folder, path) and not self._is_inner(path):
            if self._intake.look_at_settings(self.folder, os.path.dirname(path)):
                self.touch(path, SETTINGS_S)
            return
        if not is_wanted(self.folder, path) or self._is_inner(path) or self.pauses.holds(path):
            return
        if not self._intake.needs(self.folder, path):
            return
        if self._room(WINDOW + EVENTS_WINDOW) > 0:
            self._settling.touch(path, now_s, self.folder.settle_s)
        else:
            self._scans.ask(self.path)

    def _is_inner(self, path: str) -> bool:
        return any(path.startswith(os.path.join(inner, "")) for inner in self.inner)

    def _room(self, window: int) -> int:
        """How many more images may wait."""
        return window - len(self._settling) - self._queued

    def _start_scan_when_due(self, now_s: float) -> None:
        if self._is_asked or (now_s >= self._scans.next_s and not self.pauses.holds_all()):
            self._is_asked = False
            self._scans.ask(self.path)

    def _scan_on(self, now_s: float, room: int) -> None:
        def take(path: str) -> bool:
            if self.pauses.holds(path):
                return False
            self._settling.touch(path, now_s, self.folder.settle_s)
            return True

        if self._scans.step(room, take):
            self._scans.rest(now_s, self._listening.interval_s, spread=not self._listening.is_polled)
            self._intake.scanned(self.folder)

    def _submit_ready(self, now_s: float) -> None:
        ready = self._settling.ready(now_s)
        allowed = (each for each in ready if not self.pauses.holds(each[0]) and not is_behind_link(self.path, each[0]))
        self._intake.submit(self.folder, allowed)
