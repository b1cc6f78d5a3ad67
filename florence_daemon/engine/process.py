"""The engine process as the daemon sees it: started by the first request, ended when idle, replaced when it dies."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import IO, Any

from florence_daemon import errors
from florence_daemon.engine.protocol import (
    Ask,
    Begun,
    Done,
    EngineSettings,
    Failed,
    Loaded,
    LoadFailed,
    Reply,
    Request,
)
from florence_daemon.errors import CheckpointError, EngineCrashed, Stopping

log = logging.getLogger(__name__)

# A picture that brought the engine process down this often is set aside.
MAX_CRASHES = 3
# After the model could not be loaded, requests are refused for this long: every try costs seconds and may download.
LOAD_RETRY_S = 30.0
# An engine process that was asked to end gets this long before it is killed.
STOP_S = 10.0

# The child finds modules exactly where the parent does; without this, `-c` would look into the working directory first.
BOOT = "import sys; sys.path[:] = sys.argv[1:]; from florence_daemon.engine.child import main; main()"


def write_message(stream: IO[bytes], message: Any) -> None:
    """Write one message: its length in 8 bytes, then its pickle. Both ends are this program."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<Q", len(body)) + body)
    stream.flush()


def read_message(stream: IO[bytes]) -> Any:
    """Read one message. Raises: EOFError when the other end is gone."""
    header = stream.read(8)
    if len(header) < 8:
        raise EOFError
    (length,) = struct.unpack("<Q", header)
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    return pickle.loads(body)  # noqa: S301 - written by our own child or parent


@dataclass(frozen=True)
class EngineState:
    """How the engine is doing.

    name: unloaded, loading, loaded or failed. unloads_in_s: None while it works, or stays for ever.
    """

    name: str
    pid: int | None = None
    device: str | None = None
    load_s: float | None = None
    unloads_in_s: float | None = None
    error: str | None = None


@dataclass
class _Pending:
    """A request on its way, and whoever waits for it."""

    request: Request
    future: Future[Done]
    has_begun: bool = False
    crashes: int = 0


@dataclass
class _Child:
    """One engine process and what it was given."""

    process: subprocess.Popen[bytes]
    pending: dict[int, _Pending] = field(default_factory=dict)
    loaded: Loaded | None = None
    load_error: str | None = None
    is_stopping: bool = False
    write_lock: threading.Lock = field(default_factory=threading.Lock)


class Engine:
    """Answers requests in a process of its own, which exists only while there is work (and `idle_unload_s` after).

    Every future that `submit` returns ends: with Done, or with an error of `errors`.
    """

    def __init__(
        self, settings: EngineSettings, idle_unload_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._idle_unload_s = idle_unload_s
        self._clock = clock
        self._lock = threading.RLock()
        self._child: _Child | None = None
        self._numbers = itertools.count(1)
        self._idle_since_s = clock()
        self._load_error: str | None = None
        self._load_error_s = 0.0
        self._load_crashes = 0
        self._closed = False

    def submit(self, picture: str | bytes, asks: tuple[Ask, ...], *, urgent: bool = False) -> Future[Done]:
        """Send a request, starting the engine when there is none.

        Raises: CheckpointError while the model is known not to load, Stopping after `close`.
        """
        with self._lock:
            if self._closed:
                raise Stopping("the engine is stopping and takes no new work")
            if self._load_error is not None and self._clock() < self._load_error_s + LOAD_RETRY_S:
                raise CheckpointError(self._load_error)
            pending = _Pending(Request(next(self._numbers), picture, asks, urgent), Future())
            pending.future.set_running_or_notify_cancel()
            child = self._assign(pending)
        _write(child, pending.request)
        return pending.future

    def state(self) -> EngineState:
        """How the engine is doing right now."""
        with self._lock:
            child = self._child
            if child is None:
                name = "unloaded" if self._load_error is None else "failed"
                return EngineState(name, error=self._load_error)
            if child.loaded is None:
                return EngineState("loading", child.process.pid)
            unloads_in_s = None
            if not child.pending and self._idle_unload_s >= 0:
                unloads_in_s = max(0.0, self._idle_since_s + self._idle_unload_s - self._clock())
            return EngineState("loaded", child.process.pid, child.loaded.device, child.loaded.load_s, unloads_in_s)

    def tick(self, *, more_waits: bool) -> None:
        """End the process once it has been idle for long enough; `more_waits` says that the queue holds work for it."""
        with self._lock:
            child = self._child
            if child is None or child.pending or more_waits or self._idle_unload_s < 0:
                return
            if self._clock() < self._idle_since_s + self._idle_unload_s:
                return
            self._child = None
        log.info("the model was idle for %g s and is unloaded", self._idle_unload_s)
        _stop(child)

    def unload(self) -> None:
        """End the process now unless it works. Returns when it is gone."""
        with self._lock:
            child = self._child
            if child is None or child.pending:
                return
            self._child = None
        _stop(child)

    def close(self, *, at_once: bool = False) -> None:
        """Take nothing more and end the process; what runs is given up when `at_once`, else must have ended before."""
        with self._lock:
            self._closed = True
            child, self._child = self._child, None
        if child is None:
            return
        if at_once:
            child.process.kill()
        _stop(child)

    def _assign(self, pending: _Pending) -> _Child:
        """Give a request to the process, starting one when there is none; the caller writes it without the lock."""
        if self._child is None:
            self._child = self._start()
        self._child.pending[pending.request.id] = pending
        return self._child

    def _start(self) -> _Child:
        process = subprocess.Popen(
            [sys.executable, "-c", BOOT, *sys.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **_own_group()
        )
        child = _Child(process)
        _write(child, self._settings)
        threading.Thread(target=self._read, args=(child,), name="engine-replies", daemon=True).start()
        log.info("engine process %d started, loading %s", process.pid, self._settings.model)
        return child

    def _read(self, child: _Child) -> None:
        """Take the replies of one process until it ends; its own thread."""
        try:
            while child.process.stdout is not None:
                self._take(child, read_message(child.process.stdout))
        except Exception as error:
            if not isinstance(error, EOFError):
                log.exception("the engine process sent something that cannot be read; it is ended")
                child.process.kill()
        finally:
            self._bury(child)

    def _take(self, child: _Child, reply: Reply) -> None:
        with self._lock:
            if isinstance(reply, Loaded):
                child.loaded, self._load_error, self._load_crashes = reply, None, 0
                log.info("model loaded on %s in %.1f s", reply.device, reply.load_s)
                return
            if isinstance(reply, LoadFailed):
                child.load_error = reply.message
                return
            if isinstance(reply, Begun):
                child.pending[reply.id].has_begun = True
                return
            pending = child.pending.pop(reply.id)
            self._idle_since_s = self._clock()
        if isinstance(reply, Failed):
            pending.future.set_exception(getattr(errors, reply.error, errors.EngineError)(reply.message))
        else:
            pending.future.set_result(reply)

    def _bury(self, child: _Child) -> None:
        """The process has ended: send what it left unanswered to the next one, or give it up."""
        code = child.process.wait()
        _close_pipes(child)
        with self._lock:
            if self._child is child:
                self._child = None
            left = list(child.pending.values())
            child.pending.clear()
            self._idle_since_s = self._clock()
            error = self._judge(child, code)
            if error is None and left:
                log.warning("the engine process ended (%s); it is started again", _say_code(code))
            for pending in left:
                pending.crashes += pending.has_begun
            again = [pending for pending in left if error is None and pending.crashes < MAX_CRASHES]
            resent = [(self._assign(replace(pending, has_begun=False)), pending.request) for pending in again]
        for child_of_now, request in resent:
            _write(child_of_now, request)
        for pending in left:
            if pending not in again:
                pending.future.set_exception(error or _poison(pending, code))

    def _judge(self, child: _Child, code: int) -> errors.FlorenceError | None:
        """Why nothing that the process left can be answered, or None when the next process may."""
        if self._closed:
            return Stopping("the daemon stopped before this was answered")
        if child.loaded is None and child.load_error is None and not child.is_stopping:
            self._load_crashes += 1
            if self._load_crashes >= MAX_CRASHES:
                child.load_error = (
                    f"the engine process ended {self._load_crashes} times while it loaded {self._settings.model} "
                    f"({_say_code(code)}); is there enough memory for it?"
                )
        if child.load_error is None:
            return None
        self._load_error, self._load_error_s, self._load_crashes = child.load_error, self._clock(), 0
        log.error("%s", child.load_error)
        return CheckpointError(child.load_error)


def _own_group() -> dict[str, Any]:
    """Ctrl-C is for the daemon, which ends the engine when its work is done: a group of its own keeps it away."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def _poison(pending: _Pending, code: int) -> EngineCrashed:
    return EngineCrashed(
        f"the engine process ended {pending.crashes} times while it worked on this picture ({_say_code(code)}); "
        "it is set aside"
    )


def _say_code(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _write(child: _Child, message: Any) -> None:
    """Write to the process; when its pipe is broken, its reader notices and takes care of what was pending."""
    with child.write_lock, contextlib.suppress(OSError, ValueError):
        if child.process.stdin is not None:
            write_message(child.process.stdin, message)


def _stop(child: _Child) -> None:
    """Close the pipe, which tells the process to end; kill it when it does not."""
    child.is_stopping = True
    with contextlib.suppress(OSError):
        if child.process.stdin is not None:
            child.process.stdin.close()
    try:
        child.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        log.warning("the engine process %d did not end within %g s and is killed", child.process.pid, STOP_S)
        child.process.kill()
        child.process.wait()


def _close_pipes(child: _Child) -> None:
    for stream in (child.process.stdin, child.process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process, where Linux tells it."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
