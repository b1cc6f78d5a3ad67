"""Reads pictures in threads ahead of the model: urgent ones first, and few enough that their pixels fit into memory."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from florence_daemon.engine.work import Work


class ReadAhead:
    """Work that waits to be read, is being read, or has been; urgent work and other work apart.

    The pool's threads run `read_on`, which ends when nothing may be read now, so that whoever lets go of this object
    is rid of its threads too.
    """

    def __init__(self, read: Callable[[Work], None], room: int, readers: int, pool: Executor) -> None:
        """read: fills in pixels and questions, or raises. room: how many of each class are read before they are taken.

        readers: how many that are not urgent are read at once; give the pool a thread more, for those that are.
        """
        self._read = read
        self._room = room
        self._readers = readers
        self._pool = pool
        self._changed = threading.Condition()
        self._waiting: dict[bool, deque[Work]] = {True: deque(), False: deque()}
        self._reading: Counter[bool] = Counter()
        self._done: dict[bool, deque[Work]] = {True: deque(), False: deque()}
        self._refused: list[tuple[Work, Exception]] = []
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def put(self, work: Work) -> None:
        """Have a picture read when its turn comes."""
        with self._changed:
            self._waiting[work.is_urgent].append(work)
        self._pool.submit(self.read_on)

    def put_back(self, works: Sequence[Work]) -> None:
        """Return what was taken, to be taken first."""
        with self._changed:
            for work in reversed(works):
                self._done[work.is_urgent].appendleft(work)

    def take(self, count: int, *, urgent: bool) -> list[Work]:
        """Take up to so many that have been read, in the order in which they were put."""
        with self._changed:
            done = self._done[urgent]
            taken = [done.popleft() for _ in range(min(count, len(done)))]
        for _ in taken:
            self._pool.submit(self.read_on)
        return taken

    def take_refused(self) -> list[tuple[Work, Exception]]:
        """Take what could not be read, and why."""
        with self._changed:
            refused, self._refused = self._refused, []
            return refused

    def count_read(self, *, urgent: bool) -> int:
        """Count what has been read and not been taken."""
        with self._changed:
            return len(self._done[urgent])

    def count(self, *, urgent: bool) -> int:
        """Count everything that was put and not been taken."""
        with self._changed:
            return len(self._waiting[urgent]) + self._reading[urgent] + len(self._done[urgent])

    def wait_for(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until something was refused, or `condition` holds; false after the time-out, and once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._refused or condition(), timeout_s)
            return not self._is_closed and (bool(self._refused) or condition())

    def close(self) -> None:
        """Read nothing more and wake whoever waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def read_on(self) -> None:
        """Read what may be read now; a thread's whole job."""
        while (work := self._next()) is not None:
            error: Exception | None = None
            try:
                self._read(work)
            except Exception as caught:  # Whatever a picture does to its reader, it does to itself alone.
                error = caught
            with self._changed:
                self._reading[work.is_urgent] -= 1
                if error is None:
                    self._done[work.is_urgent].append(work)
                else:
                    self._refused.append((work, error))
                self._changed.notify_all()

    def _next(self) -> Work | None:
        with self._changed:
            for urgent in (True, False):
                if self._waiting[urgent] and self._may_read(urgent=urgent):
                    self._reading[urgent] += 1
                    return self._waiting[urgent].popleft()
            return None

    def _may_read(self, *, urgent: bool) -> bool:
        if self._is_closed or self._reading[urgent] + len(self._done[urgent]) >= self._room:
            return False
        return urgent or self._reading[urgent] < self._readers
