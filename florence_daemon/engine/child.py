"""The engine process itself: receives requests, lets the loop answer them, and sends each answer as it comes."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import queue
import signal
import sys
import threading
import time
from typing import IO, TYPE_CHECKING

from florence_daemon import errors, logs
from florence_daemon.engine.pipe import read_message, write_message
from florence_daemon.engine.protocol import Alive, EngineSettings, Loaded, LoadFailed, Reply, Request
from florence_daemon.engine.sharing import take_part

if TYPE_CHECKING:
    from florence_daemon.engine.backend import Loop
    from florence_daemon.engine.remote import Remote

log = logging.getLogger(__name__)

# The daemon is gone or wants this process gone: what runs gets this long, then the process ends regardless.
LAST_S = 5.0
# Seconds between two signs of life while the model works; the daemon ends an engine that gives none.
ALIVE_S = 1.0
# The signal that Linux sends this process when the thread that started it ends: <linux/prctl.h>.
PR_SET_PDEATHSIG = 1
# How much likelier than others the kernel ends this process when memory is short, -1000 to 1000.
OOM_SCORE = 800


def main() -> None:
    """Serve requests from standard input until it is closed."""
    # Stopping is the daemon's decision: a service manager or a terminal signals the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _tie_to_daemon()
    logs.set_up("text" if sys.stderr.isatty() else "json", "warning", sys.stderr, {})
    requests, replies = sys.stdin.buffer, Replies(_take_stdout())
    settings: EngineSettings = read_message(requests)
    take_part(settings.part, settings.parts)
    inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    try:
        if settings.server is not None:
            _serve_remote(settings, inbox, replies)
        else:
            _serve_model(settings, inbox, replies)
    except BrokenPipeError:
        log.warning("the daemon is gone")
    sys.stderr.flush()
    # Python cannot end as usual while a thread reads standard input: it says so at length, and aborts.
    os._exit(0)


class Replies:
    """The pipe to the daemon; several threads have something to say."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._shown_s = 0.0

    def send(self, reply: Reply) -> None:
        """Send one reply. Raises: BrokenPipeError when the daemon is gone."""
        with self._lock:
            write_message(self._stream, reply)

    def show_life(self, device: str) -> None:
        """Say that the model works, now and then; between its steps. Raises: BrokenPipeError."""
        if time.monotonic() >= self._shown_s + ALIVE_S:
            from florence_daemon.engine.backend import gpu_bytes

            self._shown_s = time.monotonic()
            self.send(Alive(gpu_bytes(device)))


def _tie_to_daemon() -> None:
    """On Linux, let the kernel end this process with the daemon, and end it rather than others when memory is short.

    Elsewhere the end of the pipe does so, if this process is able to notice it.
    """
    faulthandler.enable(all_threads=False)
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        if int(file.read()) < OOM_SCORE:
            file.seek(0)
            file.write(str(OOM_SCORE))


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


def _serve_model(settings: EngineSettings, inbox: queue.SimpleQueue[Request | None], replies: Replies) -> None:
    """Load the model, and answer with it until this process is to end."""
    loop = _load(settings, replies)
    if loop is not None:
        threading.Thread(target=_feed, args=(loop, inbox, replies), daemon=True).start()
        while loop.run_once(None):
            replies.show_life(loop.device)


def _serve_remote(settings: EngineSettings, inbox: queue.SimpleQueue[Request | None], replies: Replies) -> None:
    """Ask the server instead of a model, until this process is to end, or the server is gone."""
    from florence_daemon.engine.remote import Remote

    remote = Remote(settings, replies.send)
    if remote.open():
        threading.Thread(target=_feed, args=(remote, inbox, replies), daemon=True).start()
        remote.run()


def _feed(loop: Loop | Remote, inbox: queue.SimpleQueue[Request | None], replies: Replies) -> None:
    while (request := inbox.get()) is not None:
        loop.put(request, replies.send)
    loop.close()


def _load(settings: EngineSettings, replies: Replies) -> Loop | None:
    """Load the model and say so; None when it cannot be loaded, which is said too."""
    started_s = time.monotonic()
    try:
        from florence_daemon.engine.backend import gpu_bytes, open_loop

        loop = open_loop(settings)
    except errors.FlorenceError as error:
        replies.send(LoadFailed(str(error)))
        return None
    except Exception as error:
        log.exception("loading %s failed", settings.model)
        replies.send(LoadFailed(f"{settings.model} could not be loaded: {error!r}"))
        return None
    load_s, taken = time.monotonic() - started_s, gpu_bytes(loop.device)
    replies.send(Loaded(loop.device, load_s, loop.in_flight, taken, loop.side_px))
    return loop
