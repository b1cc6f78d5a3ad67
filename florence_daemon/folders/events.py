"""What the file system says about one folder, until the watcher takes it. The only user of watchdog."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from watchdog.events import (
    EVENT_TYPE_CLOSED,
    EVENT_TYPE_CREATED,
    EVENT_TYPE_MODIFIED,
    EVENT_TYPE_MOVED,
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from florence_daemon.folders.inotify import Sentinel
from florence_daemon.folders.names import SETTINGS_NAME, is_image_name

log = logging.getLogger(__name__)

# watchdog 6, the last one for Python 3.10, does not watch a directory that was moved in from elsewhere.
FORGETS_MOVED_IN = int(version("watchdog").partition(".")[0]) < 7
# Opening, reading and deleting are events too; the kernel's queue overflows later when it is not asked for them.
ASKED_FOR = [DirCreatedEvent, DirMovedEvent, FileCreatedEvent, FileModifiedEvent, FileMovedEvent, FileClosedEvent]
NEWS = (EVENT_TYPE_CREATED, EVENT_TYPE_MODIFIED, EVENT_TYPE_MOVED, EVENT_TYPE_CLOSED)
# Paths that are kept until they are taken; more are a matter for a scan.
MOST_PATHS = 10_000
# watchdog 7 warns when it finds a directory twice that was just made in another one; it goes on rightly.
warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)


@dataclass
class News:
    """What was heard since the last time. count: of all events. is_whole: False when paths were left out."""

    paths: dict[str, None] = field(default_factory=dict)
    directories: dict[str, None] = field(default_factory=dict)
    count: int = 0
    is_whole: bool = True


class Inbox(FileSystemEventHandler):
    """Takes watchdog's events on its thread. It only notes paths: a handler that raises would end that thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._news = News()

    def dispatch(self, event: FileSystemEvent) -> None:
        """Note where something appeared or changed."""
        try:
            self._note(event)
        except Exception:
            log.exception("an event of the file system could not be read: %r", event)

    def take(self) -> News:
        """Hand over what was noted."""
        with self._lock:
            news, self._news = self._news, News()
        return news

    def _note(self, event: FileSystemEvent) -> None:
        path = os.fsdecode(event.dest_path if event.event_type == EVENT_TYPE_MOVED else event.src_path)
        name = os.path.basename(path)
        with self._lock:
            self._news.count += 1
            if event.event_type not in NEWS:
                return
            if event.is_directory:
                if event.event_type not in (EVENT_TYPE_CREATED, EVENT_TYPE_MOVED):
                    return
                kept = self._news.directories
            elif is_image_name(name) or name == SETTINGS_NAME:
                kept = self._news.paths
            else:
                return
            if len(kept) < MOST_PATHS:
                kept[path] = None
            else:
                self._news.is_whole = False
        self._wake()


class Events:
    """The events of one folder: started, taken, and asked whether all of its threads still live."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._inbox = Inbox(wake)
        self._observer: Any = None
        self._sentinel: Sentinel | None = None

    def start(self, path: str, *, recursive: bool) -> None:
        """Listen to `path`; what was heard before is forgotten. Raises: OSError when the system refuses."""
        self.stop()
        self._inbox.take()
        self._sentinel = Sentinel(path)
        observer = Observer()
        try:
            observer.schedule(self._inbox, path, recursive=recursive, event_filter=ASKED_FOR)
            observer.start()
        except BaseException:
            _end(observer)
            raise
        self._observer = observer

    def stop(self) -> None:
        """Listen no more."""
        sentinel, self._sentinel = self._sentinel, None
        if sentinel is not None:
            sentinel.close()
        observer, self._observer = self._observer, None
        if observer is not None:
            _end(observer)

    def take(self) -> News:
        """Hand over what was heard since the last time."""
        return self._inbox.take()

    @property
    def is_started(self) -> bool:
        """Tell whether it was started and not stopped since."""
        return self._observer is not None

    def is_alive(self) -> bool:
        """Tell whether events can still come: each thread on their way lives, and the directory is the one of then.

        A thread that died says nothing by itself, nor does a watch that went with its file system.
        """
        if self._observer is None or (self._sentinel is not None and self._sentinel.is_gone()):
            return False
        return all(thread.is_alive() for thread in threads_of(self._observer))


def threads_of(observer: Any) -> Iterator[threading.Thread]:
    """The observer, its emitters, and the thread that each release of watchdog reads inotify with."""
    yield observer
    yield from observer.emitters
    for owner in (observer, *observer.emitters):
        yield from (part for part in vars(owner).values() if isinstance(part, threading.Thread))


def _end(observer: Any) -> None:
    """Stop an observer, whichever of its threads still lives."""
    try:
        observer.stop()
        observer.join(timeout=5.0)
    except Exception as error:
        # Not started, or its watches went with the file system.
        log.debug("an observer ended: %r", error)
