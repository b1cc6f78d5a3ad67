"""The engine process itself: receive requests, answer them one after the other, urgent ones first."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import IO, Any

from florence_daemon import errors
from florence_daemon.engine.pipe import read_message, write_message
from florence_daemon.engine.protocol import Begun, Done, EngineSettings, Failed, Loaded, LoadFailed, Request

log = logging.getLogger(__name__)

# The daemon is gone or wants this process gone: what runs gets this long, then the process ends regardless.
LAST_S = 5.0


def main() -> None:
    """Serve requests from standard input until it is closed."""
    # Stopping is the daemon's decision: a service manager or a terminal signals the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s engine: %(message)s")
    requests, replies = sys.stdin.buffer, _take_stdout()
    settings: EngineSettings = read_message(requests)
    inbox: queue.PriorityQueue[tuple[int, int, Request | None]] = queue.PriorityQueue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    try:
        backend = _load(settings, replies)
        if backend is not None:
            _serve(backend, inbox, replies)
    except BrokenPipeError:
        log.warning("the daemon is gone")


def _take_stdout() -> IO[bytes]:
    """Keep the pipe for replies; whatever a library prints goes to standard error instead."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def _receive(requests: IO[bytes], inbox: queue.PriorityQueue[tuple[int, int, Request | None]]) -> None:
    """Sort what comes in; at the end of the pipe, make the process end."""
    numbers = itertools.count()
    try:
        while True:
            request: Request = read_message(requests)
            inbox.put((0 if request.urgent else 1, next(numbers), request))
    except (EOFError, OSError):
        inbox.put((-1, -1, None))
    time.sleep(LAST_S)
    os._exit(1)


def _load(settings: EngineSettings, replies: IO[bytes]) -> Any:
    """Load the model and say so; None when it cannot be loaded, which is said too."""
    started_s = time.monotonic()
    try:
        from florence_daemon.engine.backend import open_backend

        backend = open_backend(settings)
    except errors.FlorenceError as error:
        write_message(replies, LoadFailed(str(error)))
        return None
    except Exception as error:
        log.exception("loading %s failed", settings.model)
        write_message(replies, LoadFailed(f"{settings.model} could not be loaded: {error!r}"))
        return None
    write_message(replies, Loaded(backend.device, time.monotonic() - started_s))
    return backend


def _serve(backend: Any, inbox: queue.PriorityQueue[tuple[int, int, Request | None]], replies: IO[bytes]) -> None:
    while (request := inbox.get()[2]) is not None:
        write_message(replies, Begun(request.id))
        write_message(replies, _answer(backend, request))


def _answer(backend: Any, request: Request) -> Done | Failed:
    """One request to its reply; nothing that a picture does may end the loop."""
    from florence_daemon.engine.preprocess import read_picture

    started_s = time.monotonic()
    try:
        picture = read_picture(request.picture)
        decode_s = time.monotonic() - started_s
        answers, stages = backend.answer(picture, request.asks)
    except errors.FlorenceError as error:
        return Failed(request.id, type(error).__name__, str(error))
    except MemoryError:
        return Failed(request.id, "EngineError", "there was not enough memory for this picture")
    except Exception as error:
        log.exception("a picture could not be answered")
        return Failed(request.id, "EngineError", f"the model failed on this picture: {error!r}")
    return Done(request.id, tuple(answers), picture.size_px, replace(stages, decode_s=decode_s))
