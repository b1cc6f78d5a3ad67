"""The engine process as the daemon sees it: started by the first request, ended when idle, replaced when it dies."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from florence_daemon.engine.custody import Custody, Returned
from florence_daemon.engine.handle import Child, Pending, start_child
from florence_daemon.engine.idle import IdleTime
from florence_daemon.engine.limits import Limits, oversee
from florence_daemon.engine.loads import Loads
from florence_daemon.engine.member import EngineState, GivenBack
from florence_daemon.engine.pipe import read_message
from florence_daemon.engine.protocol import (
    Alive,
    Ask,
    Begun,
    Done,
    EngineSettings,
    Failed,
    HasRead,
    Loaded,
    LoadFailed,
    Progress,
    Reply,
    Request,
    Source,
    error_of,
)
from florence_daemon.engine.suspects import choose_first, crashed_too_often
from florence_daemon.errors import CheckpointError, Stopping

log = logging.getLogger(__name__)

# After a process died the next one waits this long, twice as long after every further one in a row.
BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 60.0
# A close waits so long until everybody who waited for an answer has been told that there is none.
TOLD_S = 5.0
# What is said of an engine whose process cannot be ended.
STUCK = "its process cannot be ended: its driver or its disk hangs"
# Requests that the engine is worth giving at once before it has said how many keep it busy.
FIRST_IN_FLIGHT = 4


class Engine:
    """Answers requests in a process of its own, which exists only while there is work (and `idle_unload_s` after).

    Every future that `submit` returns ends: with Done, or with an error of `errors`. When a process dies, what it had
    not begun goes to the next one at once; what it had begun is suspect, and tried alone, so that none but the guilty
    brings down as many as `MAX_CRASHES`. A process that takes too much time or memory is killed, which is a death too.

    With company it keeps nothing that its process left: that is given back, for another engine to try. See `Member`.
    """

    def __init__(
        self,
        settings: EngineSettings,
        idle_unload_s: float,
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
        on_load: Callable[[float], None] = lambda seconds: None,
        on_change: Callable[[], None] = lambda: None,
        admit: Callable[[Loaded], str | None] = lambda loaded: None,
    ) -> None:
        """on_load: told how long each load took. on_change: told when it can take work, and when it no longer can.

        admit: says why what was loaded may not answer here; None lets it.
        """
        self.has_company = False
        self._settings = settings
        self._idle = IdleTime(idle_unload_s, clock)
        self._on_load = on_load
        self._on_change = on_change
        self._admit = admit
        self._limits = limits or Limits()
        self._clock = clock
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._custody = Custody()
        self._in_flight = FIRST_IN_FLIGHT
        self._side_px: int | None = None
        self._numbers = itertools.count(1)
        self._loads = Loads(settings, clock)
        self.is_stuck = False  # a process cannot be ended, and may keep the GPU: only a new daemon helps
        self._crashes = 0  # in a row
        self._died_of: str | None = None  # while the next process waits
        self._rests_until_s = 0.0
        self._is_wanted = False  # somebody wants the model loaded once that wait is over, though nobody asks anything
        self._closed = False
        self._is_closed = threading.Event()
        self._threads: list[threading.Thread] = []  # those that end futures
        # Linux kills the process when the thread that started it ends, so that is one which stays.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="engine-start")

    def submit(
        self,
        picture: Source,
        asks: tuple[Ask, ...],
        *,
        urgent: bool = False,
        on_begun: Callable[[], None] | None = None,
        crashes: int = 0,
    ) -> Future[Done]:
        """Send a request, starting the engine when there is none. on_begun: called when a process begins with it.

        crashes: processes of other engines that ended while they worked on it.
        Raises: CheckpointError while the model is known not to load, Stopping after `close`.
        """
        with self._lock:
            if self._closed:
                raise Stopping("the engine is stopping and takes no new work")
            if self._loads.refuses_for_s() is not None:
                raise CheckpointError(str(self._loads.error), self._loads.refuses_for_s())
            if self.has_company and (self._died_of is not None or self.is_stuck):
                raise GivenBack(self._died_of or STUCK)
            request = Request(next(self._numbers), picture, asks, urgent)
            pending = Pending(request, Future(), crashes=crashes, on_begun=on_begun)
            pending.future.set_running_or_notify_cancel()
            self._custody.held.append(pending)
            sent = self._assign(self._custody.allowed(self._child))
        _write_all(sent)
        return pending.future

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        return self._settings.name

    @property
    def in_flight(self) -> int:
        """How many requests at once keep it busy; more only wait inside it, where they cannot be called back.

        One that has just died gets a single one until it has answered, where others can have the rest.
        """
        return 1 if self.has_company and self._crashes else self._in_flight

    @property
    def loaded_on(self) -> str | None:
        """Where its model is; None while there is none. It waits for nobody."""
        child = self._child
        return child.loaded.device if child is not None and child.loaded is not None else None

    def state(self) -> EngineState:
        """How the engine is doing right now."""
        with self._lock:
            return replace(self._state(), keep_alive_s=self._idle.allowed_s, side_px=self._side_px)

    def _state(self) -> EngineState:
        child = self._child
        if child is None:
            if self._died_of is not None:
                left_s = max(0.0, self._rests_until_s - time.monotonic())
                return EngineState("restarting", error=self._died_of, retries_in_s=left_s)
            if self.is_stuck:
                return EngineState("failed", error=STUCK)
            loads = self._loads
            name = "unloaded" if loads.error is None else "failed"
            refuses_for_s = loads.refuses_for_s()
            retries_in_s = loads.retries_in_s() if self.has_company else refuses_for_s
            return EngineState(name, error=loads.error, refuses_for_s=refuses_for_s, retries_in_s=retries_in_s)
        if child.loaded is None:
            return EngineState("loading", child.process.pid, error=self._loads.error)
        loaded, unloads_in_s = child.loaded, None if child.pending else self._idle.left_s()
        return EngineState(
            "loaded",
            child.process.pid,
            loaded.device,
            loaded.load_s,
            unloads_in_s,
            gpu_bytes=child.gpu_bytes,
        )

    def load(self) -> None:
        """Load the model although nobody asks anything yet, also when it could not be loaded a moment ago.

        Raises: Stopping after `close`.
        """
        with self._lock:
            if self._closed:
                raise Stopping("the engine is stopping and loads nothing")
            if self._died_of is None:
                if not (self.has_company and self.is_stuck):
                    self._has_child()
            else:  # The next process waits: whoever ends its rest starts it.
                self._is_wanted = True

    def keep_alive(self, seconds: float) -> None:
        """Unload after so long without work, negative for never, instead of what the setting says.

        This holds until the model is unloaded, or somebody says otherwise.
        """
        with self._lock:
            self._idle.allowed_s = seconds

    def unload(self) -> None:
        """End the process now if nothing is asked of it, even while it loads; else once that is answered."""
        with self._lock:
            self._is_wanted = False
            if self._child is None:
                return
            self._idle.allowed_s = 0.0
            child = None if self._child.pending else self._let_go()
        if child is not None:
            log.info("the model is unloaded, as somebody wants it")
            child.stop(at_once=child.loaded is None)

    def set_aside(self, reason: str) -> None:
        """End the process at once, as it answers nothing well, and count that as a load that failed."""
        with self._lock:
            child = self._let_go()
            self._loads.failed(reason)
            back = self._custody.give_back(child, reason, is_dead=False) if child is not None else []
        if child is not None:
            child.stop(at_once=True)
        _give_back(back)
        self._on_change()

    def tick(self, *, more_waits: bool) -> None:
        """End the process once it has been idle for long enough; `more_waits` says that the queue holds work for it."""
        with self._lock:
            child, allowed_s = self._child, self._idle.allowed_s
            if child is None or child.loaded is None or child.pending or more_waits or self._idle.left_s() != 0:
                return
            self._let_go()
        log.info("the model was idle for %g s and is unloaded", allowed_s)
        child.stop()

    def _let_go(self) -> Child | None:
        """Forget the process, which the caller ends without the lock."""
        child, self._child = self._child, None
        self._idle.begin_anew()
        if child is not None:
            child.is_stopping = True
        return child

    def renew(self, settings: EngineSettings, idle_unload_s: float, limits: Limits) -> None:
        """Work with these settings from now on. What the process of before is at is given to the next one."""
        with self._lock:
            self._idle.renew(idle_unload_s)
            self._limits = limits
            if settings == self._settings or self._closed:
                return
            self._settings = settings
            self._loads = Loads(settings, self._clock)
            self._in_flight, self._side_px = FIRST_IN_FLIGHT, None
            child = self._let_go()
            if child is None:
                return
            self._custody.keep(child)
            self._died_of = "the settings of the model have changed"
            log.info("the settings of the model have changed; its process is replaced")
            self._begin_thread("engine-renew", self._replace, child)

    def _replace(self, child: Child) -> None:
        """End a process and go on with the next; a thread's whole job. Two models at once may be more than fits."""
        child.stop()
        self._resume_after(0.0)

    def close(self, *, at_once: bool = False) -> None:
        """Take nothing more and end the process; what runs is given up when `at_once`, else must have ended before.

        Returns when every future has ended: callers put away what they need for that next.
        """
        with self._lock:
            self._closed = True
            child, self._child = self._child, None
        self._is_closed.set()
        if child is not None:
            child.stop(at_once=at_once)
        self._starter.shutdown(wait=False)
        deadline_s = time.monotonic() + TOLD_S
        with self._lock:
            telling = self._threads
        for thread in telling:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _assign(self, chosen: list[Pending]) -> list[tuple[Child, Request]]:
        """Give these to the process, starting one when there is none; the caller writes them without the lock."""
        if not chosen or self._died_of is not None or self._closed:
            return []
        child = self._has_child()
        return [] if child is None else self._custody.give(child, chosen)

    def _has_child(self) -> Child | None:
        """The process, started when there is none; None when it cannot be started, which is tried again later."""
        try:
            self._child = self._child or self._start()
        except OSError as error:
            self._rest(f"it could not be started: {error}")
        return self._child

    def _start(self) -> Child:
        child = self._starter.submit(start_child, self._settings).result()
        child.sign_s = self._clock()
        self._begin_thread("engine-replies", self._read, child)
        threading.Thread(target=self._oversee, args=(child,), name="engine-limits", daemon=True).start()
        # A server that sleeps is asked again every half minute, perhaps for a night.
        is_again = self._settings.server is not None and self._loads.error is not None
        level = logging.DEBUG if is_again else logging.INFO
        log.log(level, "engine process %d started, loading %s", child.process.pid, self._settings.model)
        return child

    def _begin_thread(self, name: str, work: Callable[..., None], *arguments: object) -> None:
        """Start a thread that ends futures; the lock is held."""
        thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def _oversee(self, child: Child) -> None:
        """End one process once it has passed a limit; its own thread."""
        if not oversee(child, self._limits, self._clock, self._lock):
            self._abandon(child)

    def _abandon(self, child: Child) -> None:
        """Leave a process that cannot be ended; where there are other engines, what it was at is theirs."""
        with self._lock:
            self.is_stuck = True
            if not self.has_company or self._child is not child:
                return
            self._child = None
            back = self._custody.give_back(child, STUCK)
        _give_back(back)
        self._on_change()

    def _read(self, child: Child) -> None:
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

    def _take(self, child: Child, reply: Reply) -> None:
        if isinstance(reply, Begun):
            pending = child.pending.get(reply.id)
            if pending is not None:
                self._begin(pending)
            return
        if isinstance(reply, Loaded):
            self._welcome(child, reply)
            return
        with self._lock:
            if isinstance(reply, Progress) and (reply.id not in child.pending or child.load_error is not None):
                return  # what it was at was taken back, or is about to be: it may not answer
            if isinstance(reply, Alive | Done | Failed):
                child.sign_s = self._clock()
            if isinstance(reply, Alive):
                child.gpu_bytes = reply.gpu_bytes
                self._in_flight = reply.in_flight or self._in_flight
                return
            if isinstance(reply, LoadFailed):
                child.load_error = reply.message
                return
            if isinstance(reply, HasRead):
                child.pending[reply.id].read_s = self._clock()
                return
            pending = child.pending.pop(reply.id)
            self._idle.begin()
            self._crashes = 0
            if isinstance(reply, Done):
                self._loads.answered()
            sent = self._assign(self._custody.allowed(self._child))
        _write_all(sent)
        if isinstance(reply, Failed):
            pending.future.set_exception(error_of(reply))
        else:
            pending.future.set_result(reply)

    def _welcome(self, child: Child, loaded: Loaded) -> None:
        """The model is there."""
        with self._lock:
            if child.is_stopping:
                return
            child.load_error = self._admit(loaded)
            if child.load_error is not None:
                child.process.kill()
                return
            child.sign_s, child.gpu_bytes, child.loaded = self._clock(), loaded.gpu_bytes, loaded
            self._loads.succeeded()
            self._in_flight, self._side_px = loaded.in_flight, loaded.side_px
            self._idle.begin()
            self._on_load(loaded.load_s)
        log.info("model loaded on %s in %.1f s", loaded.device, loaded.load_s)
        self._on_change()

    def _begin(self, pending: Pending) -> None:
        pending.begun_s = self._clock()
        if pending.on_begun is not None:
            pending.on_begun()

    def _bury(self, child: Child) -> None:
        """The process has ended: send what it left unanswered to the next one, give it back, or give it up."""
        died_of = child.bury()
        back: list[Returned] = []
        with self._lock:
            self.is_stuck = False
            if self._child is child:
                self._child = None
            self._idle.begin()
            # Why nothing that it left can be answered; None when the next process may.
            error = _stopped() if self._closed else self._judge(child, died_of)
            if self.has_company and error is None and not child.is_stopping:
                back, lost = self._custody.give_back(child, died_of), []
            else:
                lost = self._custody.inherit(child, is_lost=error is not None)
            if lost:
                self._crashes = 0  # the cause is found
            if error is None and not child.is_stopping:
                self._rest(died_of)
        for pending in lost:
            pending.future.set_exception(error or crashed_too_often(pending.crashes, died_of))
        _give_back(back)
        self._on_change()

    def _judge(self, child: Child, died_of: str) -> CheckpointError | None:
        """Why the model cannot be had; a process that was let go says nothing of the next."""
        return None if child.is_stopping else self._loads.judge(child, died_of)

    def _rest(self, died_of: str) -> None:
        """Let the next process wait a little: what brings down one after the other must not keep the machine busy."""
        self._crashes += 1
        self._died_of = died_of
        seconds = min(BACKOFF_S * 2 ** (self._crashes - 1), LONGEST_BACKOFF_S)
        self._rests_until_s = time.monotonic() + seconds
        where = f" of {self.name}" if self.has_company else ""
        log.warning("the engine process%s ended (%s); it is started again in %g s", where, died_of, seconds)
        self._begin_thread("engine-rest", self._resume_after, seconds)

    def _resume_after(self, seconds: float) -> None:
        """Go on with what waits, or give it up at a stop; a thread's whole job."""
        self._is_closed.wait(seconds)
        with self._lock:
            self._died_of = None
            held = self._custody.drop() if self._closed else []
            sent = self._assign(choose_first(self._custody.held))
            if self._is_wanted and not self._closed:
                self._is_wanted = self._has_child() is None
        _write_all(sent)
        for pending in held:
            pending.future.set_exception(_stopped())
        self._on_change()


def _give_back(returned: list[Returned]) -> None:
    for pending, error in returned:
        pending.future.set_exception(error)


def _stopped() -> Stopping:
    return Stopping("the daemon stopped before this was answered")


def _write_all(sent: list[tuple[Child, Request]]) -> None:
    for child, request in sent:
        child.write(request)
