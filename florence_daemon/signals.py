"""Signals that ask the program to stop: the first one in order, the second one at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


def on_stop_signal(stop: Callable[[], None] = lambda: None) -> threading.Event:
    """Call `stop` and set the returned event at the first SIGTERM or Ctrl-C; the next raises KeyboardInterrupt."""
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        stop()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    if hasattr(signal, "SIGBREAK"):  # how Windows services and consoles end a program
        signal.signal(signal.SIGBREAK, handle)
    return asked
