"""The files of settings in one watched folder: found, read when they change, and what is wrong with them.

Nothing is believed for longer than a look at the file takes: each picture's directory, and each above it up to the
watched folder, is asked anew, so that no picture gets what was settled a moment ago.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from florence_daemon.errors import ConfigError
from florence_daemon.folders.atomic import Directory
from florence_daemon.folders.health import OK, Health
from florence_daemon.folders.names import SETTINGS_NAME
from florence_daemon.logs import printable
from florence_daemon.overrides import Override, Settings

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024
# A file that changed less than so long ago may be half written; the pictures that it concerns wait so long.
FRESH_S = 1.0
# So many known files are looked at in one turn, chosen by chance where there are more.
LOOKS = 1_000

_Stamp = tuple[int, int, int, int]


@dataclass
class _Known:
    """A file as it was read. problem: why its pictures wait. above, merged: the last merge with what is above it."""

    stamp: _Stamp
    override: Override | None = None
    problem: str | None = None
    above: Settings | None = None
    merged: Settings | None = None

    def note(self, problem: str) -> None:
        """Keep what is wrong in one line, and say so once."""
        self.problem = "; ".join(problem.splitlines())
        log.warning("%s; the pictures there wait until it is mended", printable(self.problem))


class Inherited:
    """Which settings count in which directory of one folder. One thread owns it; any may ask for its health."""

    def __init__(self, root: str, now_s: Callable[[], float] = time.time, fresh_s: float = FRESH_S) -> None:
        """now_s: seconds since the epoch, as files have them. fresh_s: 0 reads every file at once."""
        self._root = root
        self._now_s = now_s
        self._fresh_s = fresh_s
        self._known: dict[str, _Known] = {}  # by directory
        self._fresh: set[str] = set()  # directories whose file may be half written
        self._renewed: set[str] = set()  # directories whose file is not what it was

    def settings(self, base: Settings, directory: str, *, is_first: bool = False) -> Settings:
        """What counts in a directory at or below the folder; base: what is set for the whole folder.

        is_first: it is listed for the first time, so that a file which is found there is no change.
        Raises: ConfigError when a file on the way is wrong, or may be half written; the pictures wait for it.
        """
        if not base.folder.inherit:
            return base
        found = base
        for each in _way(self._root, directory):
            known = self._look(each, is_first=is_first and each == directory)
            if known is not None:
                found = _merge(known, found)
        return found

    def look(self, directory: str) -> bool:
        """Look whether a directory's file has changed; True when that must be done again in `FRESH_S`."""
        with contextlib.suppress(ConfigError):  # `health` tells of it
            self._look(directory)
        return directory in self._fresh

    def look_around(self) -> None:
        """Look at the files that are known: one that went away sends no event."""
        known = [*self._known, *self._fresh]
        for directory in random.sample(known, LOOKS) if len(known) > LOOKS else known:
            self.look(directory)

    def renewed(self) -> list[str]:
        """The directories whose file is not what it was when this was asked last."""
        found = sorted(self._renewed)
        self._renewed.clear()
        return found

    def health(self) -> Health:
        """Whether all files that are known are right."""
        problems = [each.problem for each in list(self._known.values()) if each.problem]
        if not problems:
            return OK
        more = f" (and {len(problems) - 1} more such files)" if len(problems) > 1 else ""
        return Health("degraded", f"{problems[0]}{more}; the pictures there wait until it is mended")

    def _look(self, directory: str, *, is_first: bool = False) -> _Known | None:
        """The directory's file as it is now, None without one. Raises: ConfigError while it may be half written."""
        path = os.path.join(directory, SETTINGS_NAME)
        known = self._known.get(directory)
        try:
            status = os.lstat(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                raise ConfigError(f"{path}: cannot be looked at: {error.strerror}") from None
            self._forget(directory)
            return None
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if known is not None and known.stamp == stamp:
            return known
        if 0 <= self._now_s() - status.st_mtime < self._fresh_s:
            self._fresh.add(directory)
            raise ConfigError(f"{path}: was changed a moment ago, and is read when it has settled")
        if not is_first or known is not None or directory in self._fresh:
            self._renewed.add(directory)
        self._fresh.discard(directory)
        self._known[directory] = read = self._read(path, stamp, is_file=stat.S_ISREG(status.st_mode))
        return read

    def _read(self, path: str, stamp: _Stamp, *, is_file: bool) -> _Known:
        known = _Known(stamp)
        try:
            if not is_file:
                raise ConfigError(f"{path}: is not a file of its own; links are not followed")
            if stamp[1] > MAX_BYTES:
                raise ConfigError(f"{path}: is larger than {MAX_BYTES // 1024} KB; that is no configuration")
            with Directory(os.path.dirname(path), self._root) as directory:
                content = directory.read(SETTINGS_NAME, MAX_BYTES)
            known.override = Override(path, content or b"")
            log.info("%s: read; it counts for this folder and those below", path)
        except OSError as error:
            known.note(f"{path}: cannot be read: {error.strerror or error}")
        except ConfigError as error:
            known.note(str(error))
        return known

    def _forget(self, directory: str) -> None:
        if directory in self._known:
            log.info("%s: is gone; what is set above counts again", os.path.join(directory, SETTINGS_NAME))
        elif directory not in self._fresh:
            return
        self._known.pop(directory, None)
        self._fresh.discard(directory)
        self._renewed.add(directory)


def _merge(known: _Known, above: Settings) -> Settings:
    """Lay a file over the settings above it. Raises: ConfigError."""
    if known.override is not None and known.above != above:
        known.above, known.merged, known.problem = above, None, None
        try:
            known.merged = known.override.over(above)
        except ConfigError as error:
            known.note(str(error))
    if known.merged is None:
        raise ConfigError(known.problem)
    return known.merged


def _way(root: str, directory: str) -> Iterator[str]:
    """The directories from the watched folder down to one in it."""
    path = root
    yield path
    relative = os.path.relpath(directory, root)
    for name in () if relative == os.curdir else relative.split(os.sep):
        path = os.path.join(path, name)
        yield path
