"""How long the next engine process waits after one died, so that no series of deaths keeps the machine busy."""

from __future__ import annotations

import time

# After a process died the next one waits this long, twice as long after every further one in a row.
BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 60.0


class Rests:
    """Counts deaths in a row; whoever calls holds the engine's lock.

    deaths: in a row. died_of: why there is no process, while the next one waits; else None.
    """

    def __init__(self) -> None:
        self.deaths = 0
        self.died_of: str | None = None
        self._until_s = 0.0

    def begin(self, died_of: str) -> float:
        """Note a death; return for how many seconds the next process waits."""
        self.deaths += 1
        self.died_of = died_of
        seconds = min(BACKOFF_S * 2 ** (self.deaths - 1), LONGEST_BACKOFF_S)
        self._until_s = time.monotonic() + seconds
        return seconds

    def end(self) -> None:
        """Note that the next process may start."""
        self.died_of = None

    def forget(self) -> None:
        """Note that a process has done its work, or that the cause of its death is found."""
        self.deaths = 0

    def left_s(self) -> float:
        """How long the next process waits still."""
        return max(0.0, self._until_s - time.monotonic())
