"""The engine process itself: receives requests, lets the loop answer them, and sends each answer as it comes."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from typing import IO, TYPE_CHECKING

from florence_daemon import errors
from florence_daemon.engine.pipe import read_message, write_message
from florence_daemon.engine.protocol import EngineSettings, Loaded, LoadFailed, Reply, Request

if TYPE_CHECKING:
    from florence_daemon.engine.backend import Loop

log = logging.getLogger(__name__)

# The daemon is gone or wants this process gone: what runs gets this long, then the process ends regardless.
LAST_S = 5.0


def main() -> None:
    """Serve requests from standard input until it is closed."""
    # Stopping is the daemon's decision: a service manager or a terminal signals the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s engine: %(message)s")
    requests, replies = sys.stdin.buffer, Replies(_take_stdout())
    settings: EngineSettings = read_message(requests)
    inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    try:
        loop = _load(settings, replies)
        if loop is not None:
            threading.Thread(target=_feed, args=(loop, inbox, replies), daemon=True).start()
            while loop.run_once(None):
                pass
    except BrokenPipeError:
        log.warning("the daemon is gone")


class Replies:
    """The pipe to the daemon; several threads have something to say."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, reply: Reply) -> None:
        """Send one reply. Raises: BrokenPipeError when the daemon is gone."""
        with self._lock:
            write_message(self._stream, reply)


def _take_stdout() -> IO[bytes]:
    """Keep the pipe for replies; whatever a library prints goes to standard error instead."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def _receive(requests: IO[bytes], inbox: queue.SimpleQueue[Request | None]) -> None:
    """Take what comes in, also while the model is loaded; at the end of the pipe, make the process end."""
    try:
        while True:
            inbox.put(read_message(requests))
    except (EOFError, OSError):
        inbox.put(None)
    time.sleep(LAST_S)
    os._exit(1)


def _feed(loop: Loop, inbox: queue.SimpleQueue[Request | None], replies: Replies) -> None:
    while (request := inbox.get()) is not None:
        loop.put(request, replies.send)
    loop.close()


def _load(settings: EngineSettings, replies: Replies) -> Loop | None:
    """Load the model and say so; None when it cannot be loaded, which is said too."""
    started_s = time.monotonic()
    try:
        from florence_daemon.engine.backend import open_loop

        loop = open_loop(settings)
    except errors.FlorenceError as error:
        replies.send(LoadFailed(str(error)))
        return None
    except Exception as error:
        log.exception("loading %s failed", settings.model)
        replies.send(LoadFailed(f"{settings.model} could not be loaded: {error!r}"))
        return None
    replies.send(Loaded(loop.device, time.monotonic() - started_s, loop.in_flight))
    return loop
