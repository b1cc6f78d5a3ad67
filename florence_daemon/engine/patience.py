"""How a server is asked again: while it is busy, and when a connection to it breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from florence_daemon.connection import TimedOut, Unreachable
from florence_daemon.errors import ServerError
from florence_daemon.peer import OWN_ERRORS, Busy

# A connection that breaks is tried again after these: the server may have closed it, or be starting anew.
PAUSES_S = (0.1, 0.5, 1.0, 2.0)
# A server that refused is asked again when it says, then twice as late, then four times: the picture travels each time.
LONGEST_DOUBLING = 2
# A server that has had neither place nor time for anything for so long leaves what it was given to others.
BUSY_S = 60.0

T = TypeVar("T")


class Patience:
    """Asks one server again and again; threads share it."""

    def __init__(self, server: str, is_over: threading.Event) -> None:
        """is_over: set once nothing is to be asked any more."""
        self._server = server
        self._is_over = is_over
        self._lock = threading.Lock()
        self._busy_since_s: float | None = None  # it has only refused since

    def ask(self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer. Raises: what `ask` does; ServerError when no more is waited for it."""
        broken = refused = 0
        while True:
            try:
                answer = ask()
            except Busy as busy:
                self._note_busy(busy)
                pause_s = busy.after_s * 2 ** min(refused, LONGEST_DOUBLING)
                refused += 1
            except Unreachable as error:
                if broken == len(PAUSES_S) or isinstance(error, TimedOut):
                    raise
                pause_s = PAUSES_S[broken]
                broken += 1
            except OWN_ERRORS:
                self._busy_since_s = None
                raise
            else:
                self._busy_since_s = None
                return answer
            self.pause(pause_s)

    def pause(self, seconds: float) -> None:
        """Wait. Raises: ServerError once nothing is to be asked any more."""
        if self._is_over.wait(seconds):
            raise ServerError(f"{self._server}: is not asked any more")

    def _note_busy(self, busy: Busy) -> None:
        """Bear with a busy server for a while. Raises: ServerError when that has lasted too long."""
        now_s = time.monotonic()
        with self._lock:
            if self._busy_since_s is None:
                self._busy_since_s = now_s
            lasted_s = now_s - self._busy_since_s
        if lasted_s > BUSY_S:
            raise ServerError(f"{busy} (for {BUSY_S:g} s it has said nothing else)")
