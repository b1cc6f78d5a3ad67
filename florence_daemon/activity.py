"""How many pictures were answered in each of the last minutes: what the page draws."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

# So many minutes are kept, the one under way included.
MINUTES = 60


class Activity:
    """Counts by the minute. Threads may share it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds, monotonic."""
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[int] = Counter()

    def note(self) -> None:
        """Count one picture."""
        minute = self._minute()
        with self._lock:
            self._counts[minute] += 1
            for old in [each for each in self._counts if each <= minute - MINUTES]:
                del self._counts[old]

    def per_minute(self) -> list[int]:
        """One count for each of the last `MINUTES`, the oldest first; the last is the minute under way."""
        now = self._minute()
        with self._lock:
            return [self._counts[minute] for minute in range(now - MINUTES + 1, now + 1)]

    def _minute(self) -> int:
        return int(self._clock() // 60)
