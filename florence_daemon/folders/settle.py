"""Has this file stopped changing? A file is ready once nothing about it changed for its settle time."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stamp:
    """What a file looked like: two equal stamps mean that nobody wrote it in between.

    Times are compared for equality only: clocks jump, and copies keep old dates. Numbers are those of 64 bits with a
    sign, as a database keeps them: some inodes use all bits, and dates after 2262 have more nanoseconds than fit.
    """

    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp | None:
        """The stamp of what was asked about, None unless it is a regular file."""
        if not stat.S_ISREG(status.st_mode):
            return None
        return cls(*map(_in_64_bits, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)))


def _in_64_bits(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def stamp_of(path: str) -> Stamp | None:
    """Return the file's stamp, or None when it is gone or is not a regular file (symbolic links are not followed)."""
    try:
        return Stamp.of(os.lstat(path))
    except (OSError, ValueError):
        return None


@dataclass
class _Waiting:
    stamp: Stamp
    since_s: float
    settle_s: float

    @property
    def due_s(self) -> float:
        return self.since_s + self.settle_s


class Settling:
    """The files that were heard of and may still be written. Not thread-safe: one thread owns it.

    Times are seconds of one monotonic clock, passed in.
    """

    def __init__(self, stamp_of: Callable[[str], Stamp | None] = stamp_of) -> None:
        self._stamp = stamp_of
        self._waiting: dict[str, _Waiting] = {}
        # No file is due earlier. It may say too early, which costs a look; it spares one at each of thousands.
        self._due_s = float("inf")

    def __len__(self) -> int:
        return len(self._waiting)

    def touch(self, path: str, now_s: float, settle_s: float) -> None:
        """Note that something happened to `path`; its wait starts when it is new here or has changed."""
        stamp = self._stamp(path)
        if stamp is None:
            self._waiting.pop(path, None)
            return
        waiting = self._waiting.get(path)
        if waiting is None or waiting.stamp != stamp:
            self._wait(path, _Waiting(stamp, now_s, settle_s))

    def _wait(self, path: str, waiting: _Waiting) -> None:
        self._waiting[path] = waiting
        self._due_s = min(self._due_s, waiting.due_s)

    def ready(self, now_s: float) -> list[tuple[str, Stamp]]:
        """Take out the files that stayed as they were for their settle time; those that changed wait anew."""
        ready: list[tuple[str, Stamp]] = []
        if now_s < self._due_s:
            return ready
        self._due_s = min((each.due_s for each in self._waiting.values() if each.due_s > now_s), default=float("inf"))
        for path in [path for path, waiting in self._waiting.items() if waiting.due_s <= now_s]:
            waiting, stamp = self._waiting[path], self._stamp(path)
            if stamp == waiting.stamp:
                ready.append((path, waiting.stamp))
                del self._waiting[path]
            elif stamp is None:
                del self._waiting[path]
            else:
                self._wait(path, _Waiting(stamp, now_s, waiting.settle_s))
        return ready

    def next_due_s(self) -> float | None:
        """When `ready` is worth asking again, or None when nothing waits."""
        return self._due_s if self._waiting else None
