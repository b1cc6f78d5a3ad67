"""Signals that ask the program to stop, the first one in order, the second one at once; and to read its settings."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from types import FrameType


class StopSignal:
    """Listens for SIGTERM, Ctrl-C and Windows' Ctrl-Break from now on; main thread only.

    The handler takes no lock and prints nothing: it runs in the middle of whatever the main thread is at. Nor would
    waiting for a lock do, since a signal that comes just before the wait would not end it. Python writes each signal's
    number into a socket, which does.
    """

    def __init__(self, *, hears_hang_up: bool = False) -> None:
        """hears_hang_up: SIGHUP is heard too, which else ends the program, as it does when its terminal is closed."""
        self.is_set = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._handle)
        if hears_hang_up and hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, lambda number, frame: None)
        self._had_terminal = _has_terminal()

    def wait(self, on_hang_up: Callable[[], None] = lambda: None) -> None:
        """Return at the first signal. Raises: KeyboardInterrupt at the second, here or wherever the program is.

        on_hang_up: called for each SIGHUP, but for that of a terminal which was closed: this stops the program.
        """
        while not self.is_set:
            numbers = self._reader.recv(64)
            if hasattr(signal, "SIGHUP") and signal.SIGHUP in numbers:
                if self._had_terminal and not _has_terminal():
                    return
                on_hang_up()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True


def _has_terminal() -> bool:
    """Tell whether a terminal still shows what the program writes."""
    return os.isatty(2)
