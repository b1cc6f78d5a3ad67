"""How many requests may be under way: a place is taken before a body is decoded, and given back with the answer."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from florence_daemon.errors import QueueFull
from florence_daemon.http.guards import Head, Refusal

# Seconds after which a client that found no place may try again.
RETRY_AFTER_S = 2


class Places:
    """`limit` places for the requests to `paths`, which wait for the model; threads share it."""

    def __init__(self, limit: int, paths: Collection[str]) -> None:
        self._limit = limit
        self._paths = frozenset(paths)
        self._taken = 0
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a place for as long as the request takes. Raises: QueueFull."""
        with self._lock:
            if self._taken >= self._limit:
                raise QueueFull(self._full())
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1

    def refusal(self, head: Head) -> Refusal | None:
        """Refuse by the head what would find no place, so that its body need not be sent.

        No place is held for a body under way: slow senders would hold them all.
        """
        if self._taken < self._limit or head.method != "POST" or head.path not in self._paths:
            return None
        return Refusal(503, "Service Unavailable", self._full(), (("Retry-After", str(RETRY_AFTER_S)),))

    def _full(self) -> str:
        return f"{self._limit} requests wait or run already (server.max_queued); try again in {RETRY_AFTER_S} s"
