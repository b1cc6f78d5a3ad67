"""Read the configuration anew when its file changes, or when a signal asks for it; a wrong one changes nothing."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import attrs

from florence_daemon.config import Config
from florence_daemon.current import Current
from florence_daemon.errors import FlorenceError
from florence_daemon.logs import printable

log = logging.getLogger(__name__)

# Seconds between two looks at the file. One that has changed is read once it is the same at two looks, so that an
# editor has done with it.
LOOK_S = 1.0

# Settings of the server that count at once; the others shape what listens.
AT_ONCE = ("token", "allowed_hosts")

_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Source:
    """Where a configuration comes from. file: None when there is none. read: the whole of it, the command line's words
    included; raises ConfigError."""

    file: Path | None
    read: Callable[[], Config]


class Reloader:
    """`tick` is one look; `run` repeats it on a thread of its own. `ask` may be called from any thread."""

    def __init__(self, source: Source, current: Current, apply: Callable[[Config], Sequence[str]]) -> None:
        """apply: makes a configuration count, and returns the settings that need a restart for it."""
        self._source = source
        self._current = current
        self._apply = apply
        self._stamp = self._seen = _stamp_of(source.file)
        self._is_asked = False
        self._wake = threading.Event()
        self._stopped = False

    def run(self) -> None:
        """Look until `stop`."""
        while not self._stopped:
            try:
                self.tick()
            except Exception:
                log.exception("the configuration could not be applied; it is tried again when it changes")
            self._wake.wait(LOOK_S)
            self._wake.clear()

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stopped = True
        self._wake.set()

    def ask(self) -> None:
        """Read it anew now, changed or not."""
        self._is_asked = True
        self._wake.set()

    def tick(self) -> None:
        """Look at the file once, and read it if it is time."""
        before, self._seen = self._seen, _stamp_of(self._source.file)
        has_changed = self._seen != self._stamp and self._seen == before and self._seen is not None
        if has_changed or self._is_asked:
            self._is_asked = False
            self._stamp = self._seen
            self._reload()

    def _reload(self) -> None:
        try:
            self._refuse_hidden()
            config = self._source.read()
            needs_restart = self._apply(config)
        except FlorenceError as error:
            self._current.error = "; ".join(printable(line) for line in str(error).splitlines())
            log.error("the configuration is wrong, and the one before stays in force: %s", self._current.error)
            return
        self._current.error, self._current.needs_restart = None, tuple(needs_restart)
        log.info("the configuration was read anew and counts now: %s", self._source.file or "no file, the defaults")
        if needs_restart:
            log.warning("these settings have changed too, and count after a restart: %s", ", ".join(needs_restart))

    def _refuse_hidden(self) -> None:
        """Say so where a service was shown the file itself, and an editor has put another in its place since."""
        if self._seen is not None and self._seen[3] == 0:
            raise FlorenceError(
                f"{self._source.file} was replaced by another file, which this service does not see until it is "
                "restarted"
            )


def needing_restart(started: Config, now: Config) -> list[str]:
    """The settings in which a configuration differs from that of the start, and which count after a restart only."""
    names = [each.name for each in attrs.fields(type(now.server))]
    at_once = AT_ONCE if now.server.host == started.server.host else ()
    changed = [
        name for name in names if name not in at_once and getattr(now.server, name) != getattr(started.server, name)
    ]
    return [f"server.{name}" for name in changed] + (["state.dir"] if now.state != started.state else [])


def _stamp_of(file: Path | None) -> _Stamp | None:
    """What tells that a file has changed; None when it is not there. The last is its number of names."""
    if file is None:
        return None
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_nlink
