"""Two questions for Linux's inotify that watchdog does not answer: was the directory replaced, is a limit reached."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import sys
from pathlib import Path

log = logging.getLogger(__name__)

# From <sys/inotify.h>. Of an unmount and of a watch's end a watch hears without asking.
IN_DELETE_SELF, IN_MOVE_SELF = 0x400, 0x800
PLENTY_OF_INSTANCES, PLENTY_OF_WATCHES = 8_192, 1_048_576


class Sentinel:
    """A watch on one directory alone, which tells whether it was deleted, moved or unmounted since.

    Device and inode do not: a file system that is unmounted and mounted again gets the same numbers, as a directory
    does on ext4 that is removed and made again. Where there is no inotify, or no watch to be had, nothing is told.
    """

    def __init__(self, path: str) -> None:
        self._handle = _open()
        if self._handle is not None:
            _add_watch(self._handle, path)

    def is_gone(self) -> bool:
        """Tell whether the directory that was there at the start is another one now."""
        if self._handle is None:
            return False
        try:
            return bool(os.read(self._handle, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Watch no more."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def limit_reached(path: str) -> str:
    """Say which limit keeps `path` from being watched by one more; empty when there is none.

    At the limit watchdog leaves new directories out and says nothing; that it is reached is all one can see.
    """
    handle = _open()
    if handle is None:
        refused = ctypes.get_errno() in (errno.EMFILE, errno.ENFILE)
        return _describe("instances", PLENTY_OF_INSTANCES) if sys.platform == "linux" and refused else ""
    try:
        refused = not _add_watch(handle, path) and ctypes.get_errno() == errno.ENOSPC
        return _describe("watches", PLENTY_OF_WATCHES) if refused else ""
    finally:
        os.close(handle)


def _open() -> int | None:
    """A new inotify instance, None where the system has or gives none; errno says why."""
    if sys.platform != "linux":
        return None
    handle = ctypes.CDLL(None, use_errno=True).inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    return handle if handle >= 0 else None


def _add_watch(handle: int, path: str) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.inotify_add_watch(handle, os.fsencode(path), IN_DELETE_SELF | IN_MOVE_SELF) >= 0


def _describe(what: str, plenty: int) -> str:
    """Name the lower of the machine's limit and the user namespace's, which is a container's."""
    found = []
    for name in (f"fs.inotify.max_user_{what}", f"user.max_inotify_{what}"):
        with contextlib.suppress(OSError, ValueError):
            found.append((int(Path("/proc/sys", *name.split(".")).read_text(encoding="ascii")), name))
    value, name = min(found, default=(0, f"fs.inotify.max_user_{what}"))
    return f"the limit {name} = {value} is reached; raise it: sudo sysctl {name}={max(plenty, 2 * value)}"
