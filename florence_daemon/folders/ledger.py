"""What became of each image: the failures with their reasons. It lives as long as the process does."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from florence_daemon.folders.settle import Stamp


@dataclass(frozen=True)
class Failure:
    """An image that was not captioned. attempts: how often it was tried as it is."""

    path: str
    reason: str
    attempts: int
    stamp: Stamp | None


class Ledger:
    """Failures by image. The sidecars themselves tell what is done, so nothing else needs remembering."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: dict[str, Failure] = {}

    def failed(self, path: str, reason: str, stamp: Stamp | None, attempts: int = 1) -> None:
        """Note a failure; attempts add up while the file stays as it is."""
        with self._lock:
            before = self._failures.get(path)
            if before is not None and before.stamp == stamp:
                attempts += before.attempts
            self._failures[path] = Failure(path, reason, attempts, stamp)

    def settled(self, path: str) -> None:
        """Forget a failure: the image was captioned, or is gone."""
        with self._lock:
            self._failures.pop(path, None)

    def has_failed(self, path: str, stamp: Stamp | None) -> bool:
        """Tell whether this very file, unchanged, failed before."""
        with self._lock:
            failure = self._failures.get(path)
            return failure is not None and failure.stamp == stamp

    def failures(self) -> list[Failure]:
        """Every failure, by path."""
        with self._lock:
            return sorted(self._failures.values(), key=lambda failure: failure.path)
