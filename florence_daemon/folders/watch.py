"""Watch folders: events and scans find the files, settling makes them ready. The only user of watchdog.

Events are hints: they may be lost, late or doubled. What a scan finds is the truth, so every folder is scanned at
start, every `rescan_s`, and whenever its root was replaced or mounted anew.
"""

from __future__ import annotations

import heapq
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

from watchdog.events import (
    EVENT_TYPE_CLOSED,
    EVENT_TYPE_CREATED,
    EVENT_TYPE_MODIFIED,
    EVENT_TYPE_MOVED,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from florence_daemon.config import FolderConfig
from florence_daemon.folders.pauses import Pauses
from florence_daemon.folders.scan import find_images, is_image_name, is_wanted
from florence_daemon.folders.settle import Settling, Stamp
from florence_daemon.liveness import SHOW_S

log = logging.getLogger(__name__)

# Seconds between two looks whether the roots are still the directories that are watched.
CHECK_S = 10.0
MISSING = "missing"
# watchdog 6, the last one for Python 3.10, does not watch a directory that was moved in from elsewhere.
FORGETS_MOVED_IN = int(version("watchdog").partition(".")[0]) < 7
# Opening and closing a file to read it are events too; these are the ones that can mean a new or changed picture.
INTERESTING = (EVENT_TYPE_CREATED, EVENT_TYPE_MODIFIED, EVENT_TYPE_MOVED, EVENT_TYPE_CLOSED)


class Intake(Protocol):
    """Where ready files go."""

    def needs(self, folder: FolderConfig, path: str) -> bool:
        """Tell whether the image still lacks something; asked before it settles, so it must be cheap."""

    def submit(self, folder: FolderConfig, path: str, stamp: Stamp) -> None:
        """Take an image that has stopped changing."""


@dataclass
class Root:
    """A watched folder and how it is doing. health: `ok`, `missing`, or what is wrong with it."""

    folder: FolderConfig
    identity: tuple[int, int] | None = None
    watch: Any = None
    next_scan_s: float = 0.0
    health: str = "not looked at yet"
    pauses: Pauses = field(init=False)

    def __post_init__(self) -> None:
        self.pauses = Pauses(os.fspath(self.folder.path))


class _Inbox(FileSystemEventHandler):
    """Takes watchdog's events. It only notes paths: a handler that raises would end watchdog's thread for good."""

    def __init__(self, wake: threading.Event) -> None:
        self.paths: deque[tuple[str, bool]] = deque()
        self._wake = wake

    def dispatch(self, event: FileSystemEvent) -> None:
        """Note where something appeared or changed; called on watchdog's thread."""
        try:
            if event.event_type not in INTERESTING:
                return
            path = os.fsdecode(event.dest_path if event.event_type == EVENT_TYPE_MOVED else event.src_path)
            is_new_directory = event.is_directory and event.event_type in (EVENT_TYPE_CREATED, EVENT_TYPE_MOVED)
            if is_new_directory or (not event.is_directory and is_image_name(os.path.basename(path))):
                self.paths.append((path, is_new_directory))
                self._wake.set()
        except Exception:
            log.exception("an event of the file system could not be read: %r", event)


class Watcher:
    """Feeds an intake with the pictures of several folders. `tick` is one step; `run` repeats it."""

    def __init__(
        self,
        folders: Sequence[FolderConfig],
        intake: Intake,
        clock: Callable[[], float],
        show_life: Callable[[], None] = lambda: None,
    ) -> None:
        """show_life: called between steps, and while a folder is scanned."""
        self.roots = [Root(folder) for folder in folders]
        self._intake = intake
        self._clock = clock
        self._show_life = show_life
        self._settling = Settling()
        self._wake = threading.Event()
        self._inbox = _Inbox(self._wake)
        self._later_lock = threading.Lock()
        self._later: list[tuple[float, str]] = []
        self._observer: Any = None
        self._next_check_s = 0.0
        self._stopped = False

    @property
    def settling(self) -> int:
        """How many files are being waited for."""
        return len(self._settling)

    def touch(self, path: str, delay_s: float = 0.0) -> None:
        """Look at `path` again after `delay_s`, as if an event had named it; from any thread."""
        with self._later_lock:
            heapq.heappush(self._later, (self._clock() + delay_s, path))
        self._wake.set()

    def pause(self, path: str, reason: str) -> None:
        """Submit nothing of the root of `path` until it can be written again; from any thread.

        Where the root itself can be written, only the directory of `path` stays paused.
        """
        root = self._root_of(path)
        if root is not None:
            root.pauses.add(path, reason)
            self._wake.set()

    def is_paused(self, path: str) -> bool:
        """Tell whether `path` must wait until its folder can be written again; from any thread."""
        root = self._root_of(path)
        return root is not None and root.pauses.holds(path)

    def run(self) -> None:
        """Repeat `tick` until `stop`, sleeping while there is nothing to do."""
        while not self._stopped:
            try:
                due_s = self.tick(self._clock())
            except Exception:
                log.exception("watching failed; it goes on in %g s", CHECK_S)
                due_s = self._clock() + CHECK_S
            self._show_life()
            self._wake.wait(min(max(0.0, due_s - self._clock()), SHOW_S))
            self._wake.clear()
        self._stop_observer()

    def stop(self) -> None:
        """Make `run` return soon; from any thread."""
        self._stopped = True
        self._wake.set()

    def tick(self, now_s: float) -> float:
        """Do what is due and return when the next step is; events wake it earlier."""
        if now_s >= self._next_check_s:
            self._check(now_s)
            self._next_check_s = now_s + CHECK_S
        self._resume(now_s)
        self._rescan(now_s)
        self._read_inbox(now_s)
        self._read_later(now_s)
        for path, stamp in self._settling.ready(now_s):
            root = self._root_of(path)
            if root is not None and is_wanted(root.folder, path) and not root.pauses.holds(path):
                self._intake.submit(root.folder, path, stamp)
        return min(self._due(now_s))

    def _due(self, now_s: float) -> list[float]:
        """When something is to be done next."""
        due = [self._next_check_s, *(root.next_scan_s for root in self.roots if root.identity is not None)]
        with self._later_lock:
            due += [due_s for due_s, _ in self._later[:1]]
        others = [self._settling.next_due_s(), *(root.pauses.next_due_s() for root in self.roots)]
        return due + [due_s for due_s in others if due_s is not None]

    def _root_of(self, path: str) -> Root | None:
        """The root whose settings count for `path`: the innermost of those that contain it."""
        inside = [root for root in self.roots if path.startswith(os.path.join(root.folder.path, ""))]
        return max(inside, key=lambda root: len(os.fspath(root.folder.path)), default=None)

    def _resume(self, now_s: float) -> None:
        """Scan what can be written again: what became ready in the meantime was not kept."""
        for root in self.roots:
            for directory in root.pauses.tick(now_s):
                log.info("%s: can be written again; it goes on", directory)
                self._scan(root, directory, now_s)
            reasons = root.pauses.reasons()
            if reasons and root.health != MISSING:
                root.health = f"paused: {reasons[0]}"
            elif root.health.startswith("paused: "):
                root.health = "ok"

    def _read_later(self, now_s: float) -> None:
        while True:
            with self._later_lock:
                if not self._later or self._later[0][0] > now_s:
                    return
                _, path = heapq.heappop(self._later)
            self._consider(path, now_s)

    def _check(self, now_s: float) -> None:
        """Watch roots that appeared or were replaced, and start over when watchdog's thread has died."""
        if self._observer is None or not self._observer.is_alive():
            self._start_observer()
        for root in self.roots:
            identity = _identity(root.folder)
            if identity is None:
                self._lose(root)
                continue
            if identity != root.identity:
                # Mounted or made anew: the old watch is about a directory that is not here any more.
                self._unschedule(root)
                root.identity, root.next_scan_s = identity, now_s
            if root.watch is None:
                self._schedule(root)

    def _rescan(self, now_s: float) -> None:
        """Scan the roots whose time has come."""
        for root in self.roots:
            if root.identity is not None and now_s >= root.next_scan_s:
                root.next_scan_s = now_s + root.folder.rescan_s
                self._scan(root, os.fspath(root.folder.path), now_s)

    def _start_observer(self) -> None:
        if self._observer is not None:
            log.warning("the file system observer had stopped; it is started again")
        self._observer = Observer()
        self._observer.daemon = True
        self._observer.start()
        for root in self.roots:
            root.identity, root.watch = None, None

    def _stop_observer(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=5.0)

    def _lose(self, root: Root) -> None:
        """Note that the root is not there. What is gone may only be unmounted: nothing is deleted for it."""
        self._unschedule(root)
        root.identity = None
        if root.health != MISSING:
            log.warning("%s: this folder is not there; it is looked for every %g s", root.folder.path, CHECK_S)
        root.health = MISSING

    def _schedule(self, root: Root) -> None:
        try:
            root.watch = self._observer.schedule(
                self._inbox, os.fspath(root.folder.path), recursive=root.folder.recursive
            )
        except Exception as error:
            # No watches left, say: the scans alone find the pictures until there are.
            health = f"no events ({error}); scanned every {root.folder.rescan_s:g} s"
            if root.health != health:
                log.warning("%s: %s", root.folder.path, health)
            root.health = health
            return
        root.health = "ok"
        log.info("%s: watching%s", root.folder.path, " with all below it" if root.folder.recursive else "")

    def _unschedule(self, root: Root) -> None:
        if root.watch is None:
            return
        try:
            self._observer.unschedule(root.watch)
        except Exception as error:
            log.debug("%s: its watch was gone already: %s", root.folder.path, error)
        root.watch = None

    def _read_inbox(self, now_s: float) -> None:
        grown: dict[str, Root] = {}
        while self._inbox.paths:
            path, is_directory = self._inbox.paths.popleft()
            if not is_directory:
                self._consider(path, now_s)
                continue
            for root in self.roots:
                if root.folder.recursive and path.startswith(os.path.join(root.folder.path, "")):
                    grown[path] = root
        if FORGETS_MOVED_IN:
            # Watching all of it anew misses what happens between the two calls, so all of it is scanned.
            grown = {os.fspath(root.folder.path): root for root in grown.values()}
            for root in grown.values():
                self._unschedule(root)
                self._schedule(root)
        for path, root in grown.items():
            # Files that were written before the new directory was watched sent no event.
            self._scan(root, path, now_s)

    def _scan(self, root: Root, start: str, now_s: float) -> None:
        for path in find_images(root.folder, start, on_error=_say_unreadable):
            self._show_life()
            self._consider(path, now_s)

    def _consider(self, path: str, now_s: float) -> None:
        root = self._root_of(path)
        if root is None or not is_wanted(root.folder, path) or root.pauses.holds(path):
            return
        if self._intake.needs(root.folder, path):
            self._settling.touch(path, now_s, root.folder.settle_s)


def _identity(folder: FolderConfig) -> tuple[int, int] | None:
    try:
        status = os.stat(folder.path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _say_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        log.warning("%s: cannot be looked into: %s", error.filename, error.strerror)
