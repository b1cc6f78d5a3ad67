"""One engine process from outside: started, written to, ended; and what it was given to do."""

from __future__ import annotations

import contextlib
import logging
import mmap
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from florence_daemon.engine.pipe import write_message
from florence_daemon.engine.protocol import Done, EngineSettings, Loaded, Request
from florence_daemon.errors import FlorenceError
from florence_daemon.logs import relay

log = logging.getLogger(__name__)

# An engine process that was asked to end gets this long before it is killed.
STOP_S = 5.0
# One that was killed and is still there after so long cannot be ended.
STUCK_S = 30.0

# The child finds modules exactly where the parent does; without this, `-c` would look into the working directory first.
BOOT = "import sys; sys.path[:] = sys.argv[1:]; from florence_daemon.engine.child import main; main()"


@dataclass(frozen=True)
class Excess:
    """A limit that a process passed. blamed: the requests that it is about; None where any that has begun may be."""

    reason: str
    blamed: frozenset[int] | None = None


@dataclass(eq=False)
class Pending:
    """A request on its way, and whoever waits for it."""

    request: Request
    future: Future[Done]
    begun_s: float | None = None
    read_s: float | None = None
    crashes: int = 0
    on_begun: Callable[[], None] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the process is at work on it: should it end now, it may be because of this."""
        return self.begun_s is not None

    def begin_anew(self) -> None:
        """Forget how far it was: another process takes it."""
        self.begun_s = self.read_s = None

    @property
    def is_suspect(self) -> bool:
        """Whether a process died while it worked on this, perhaps because of it."""
        return self.crashes > 0


@dataclass(eq=False)
class Child:
    """One engine process and what it was given.

    sign_s: when it was started, or when its model last gave a sign of life. gpu_bytes: the GPU memory that it says it
    holds. excess: why the daemon ended it.
    """

    process: subprocess.Popen[bytes]
    sign_s: float = 0.0
    pending: dict[int, Pending] = field(default_factory=dict)
    loaded: Loaded | None = None
    gpu_bytes: int | None = None
    load_error: str | None = None
    is_stopping: bool = False
    excess: Excess | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    _write_lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, message: Any) -> None:
        """Write to the process; when its pipe is broken, its reader notices and takes care of what was pending."""
        with self._write_lock, contextlib.suppress(OSError, ValueError):
            if self.process.stdin is not None:
                write_message(self.process.stdin, message)

    def at_work_on(self, request_id: int) -> Pending | None:
        """What it says something of; None when it may not answer, as that was taken back, or is about to be."""
        return None if self.load_error is not None else self.pending.get(request_id)

    def forgive(self, seconds: float) -> None:
        """Count these as not passed: the daemon or the machine slept, and the process perhaps with it."""
        self.sign_s += seconds
        for pending in self.pending.values():
            if pending.begun_s is not None:
                pending.begun_s += seconds
            if pending.read_s is not None:
                pending.read_s += seconds

    def end(self, excess: Excess) -> None:
        """Kill the process for what it took."""
        self.excess = excess
        self.process.kill()

    def is_blamed(self, pending: Pending) -> bool:
        """Tell whether the process may have ended because of this request."""
        if self.excess is None or self.excess.blamed is None:
            return pending.has_begun
        return pending.request.id in self.excess.blamed

    def stop(self, *, at_once: bool = False) -> bool:
        """Close the pipe, which tells the process to end; kill it when it does not, or `at_once`.

        False when it cannot be ended.
        """
        self.is_stopping = True
        if at_once:
            self.process.kill()
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            log.warning("the engine process %d did not end within %g s and is killed", self.process.pid, STOP_S)
            self.process.kill()
            try:
                self.process.wait(STUCK_S)
            except subprocess.TimeoutExpired:
                return False
        return True

    def bury(self) -> str:
        """Wait for the end of a process that ends, and close its pipes. Returns what it died of, in words."""
        code = self.process.wait()
        self.ended.set()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self.excess is not None:
            return self.excess.reason
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


Ended = tuple[Pending, FlorenceError]
"""A request that has no answer, and why."""


def end_all(ends: Sequence[Ended]) -> None:
    """Tell those who wait; without the engine's lock, since they have something to do then."""
    for pending, error in ends:
        pending.future.set_exception(error)


def write_all(sent: Sequence[tuple[Child, Request]]) -> None:
    """Write requests to their processes; without the engine's lock, since a pipe may be full."""
    for child, request in sent:
        child.write(request)


def start_child(settings: EngineSettings) -> Child:
    """Start an engine process and tell it its settings."""
    # On a terminal it writes for itself, as a download shows its progress there; else its lines are logged like ours.
    process = subprocess.Popen(
        [sys.executable, "-c", BOOT, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if sys.stderr is not None and sys.stderr.isatty() else subprocess.PIPE,
        **own_group(),
    )
    if process.stderr is not None:
        threading.Thread(target=relay, args=(process.stderr, "engine: "), name="engine-log", daemon=True).start()
    child = Child(process)
    child.write(settings)
    return child


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process, where Linux tells it."""
    pages = _pages(pid)
    return None if pages is None else pages[1] * mmap.PAGESIZE


def taken_bytes(pid: int) -> int | None:
    """Memory that a process took for itself, without the files that it maps; where Linux tells it."""
    pages = _pages(pid)
    return None if pages is None else (pages[1] - pages[2]) * mmap.PAGESIZE


def _pages(pid: int) -> list[int] | None:
    """The process' size, what is resident of it, and what is shared of that."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return [int(count) for count in file.read().split()]
    except (OSError, ValueError):
        return None


def own_group() -> dict[str, Any]:
    """Ctrl-C is for the daemon, which ends the engine when its work is done: a group of its own keeps it away."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}
