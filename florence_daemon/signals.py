"""Signals that ask the program to stop: the first one in order, the second one at once."""

from __future__ import annotations

import signal
import socket
from types import FrameType


class StopSignal:
    """Listens for SIGTERM, Ctrl-C and Windows' Ctrl-Break from now on; main thread only.

    The handler takes no lock and prints nothing: it runs in the middle of whatever the main thread is at. Nor would
    waiting for a lock do, since a signal that comes just before the wait would not end it. Python writes each signal's
    number into a socket, which does.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._handle)

    def wait(self) -> None:
        """Return at the first signal. Raises: KeyboardInterrupt at the second, here or wherever the program is."""
        while not self.is_set:
            self._reader.recv(64)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
