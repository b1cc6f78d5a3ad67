"""The engine process as the daemon sees it: started by the first request, ended when idle, replaced when it dies."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from florence_daemon.engine.handle import Pending, end_all, write_all
from florence_daemon.engine.idle import IdleTime
from florence_daemon.engine.limits import Limits
from florence_daemon.engine.member import STUCK, EngineState, GivenBack, Told
from florence_daemon.engine.protocol import Ask, Done, EngineSettings, Loaded, Request, Source
from florence_daemon.engine.succession import Succession
from florence_daemon.errors import CheckpointError, Stopping

log = logging.getLogger(__name__)


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
        self._idle = IdleTime(idle_unload_s, clock)
        self._on_change = on_change
        self._numbers = itertools.count(1)
        told = Told(on_load, on_change, admit)
        self._processes = Succession(settings, self._idle, clock, limits or Limits(), told)
        self._lock = self._processes.lock

    @property
    def has_company(self) -> bool:
        """Whether what its process leaves is given back, for others to try."""
        return self._processes.has_company

    @has_company.setter
    def has_company(self, has_company: bool) -> None:
        self._processes.has_company = has_company

    @property
    def is_stuck(self) -> bool:
        """Whether a process of its cannot be ended, and may keep the GPU. It waits for nobody."""
        return self._processes.is_stuck

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
        processes = self._processes
        with self._lock:
            if processes.is_closed:
                raise Stopping("the engine is stopping and takes no new work")
            refuses_for_s = processes.loads.refuses_for_s()
            if refuses_for_s is not None:
                raise CheckpointError(str(processes.loads.error), refuses_for_s)
            if self.has_company and (processes.rests.died_of is not None or self.is_stuck):
                raise GivenBack(processes.rests.died_of or STUCK)
            request = Request(next(self._numbers), picture, asks, urgent)
            pending = Pending(request, Future(), crashes=crashes, on_begun=on_begun)
            pending.future.set_running_or_notify_cancel()
            processes.custody.held.append(pending)
            sent = processes.assign(processes.custody.allowed(processes.child))
        write_all(sent)
        return pending.future

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        return self._processes.settings.name

    @property
    def in_flight(self) -> int:
        """How many requests at once keep it busy; more only wait inside it, where they cannot be called back.

        One that has just died gets a single one until it has answered, where others can have the rest.
        """
        return 1 if self.has_company and self._processes.rests.deaths else self._processes.in_flight

    @property
    def loaded_on(self) -> str | None:
        """Where its model is; None while there is none. It waits for nobody."""
        child = self._processes.child
        return child.loaded.device if child is not None and child.loaded is not None else None

    def state(self) -> EngineState:
        """How the engine is doing right now."""
        with self._lock:
            return replace(self._state(), keep_alive_s=self._idle.allowed_s, side_px=self._processes.side_px)

    def _state(self) -> EngineState:
        child = self._processes.child
        if child is None:
            return self._state_without_process()
        if child.loaded is None:
            return EngineState("loading", child.process.pid, error=self._processes.loads.error)
        return EngineState(
            "loaded",
            child.process.pid,
            child.loaded.device,
            child.loaded.load_s,
            unloads_in_s=None if child.pending else self._idle.left_s(),
            gpu_bytes=child.gpu_bytes,
        )

    def _state_without_process(self) -> EngineState:
        loads, rests = self._processes.loads, self._processes.rests
        if rests.died_of is not None:
            return EngineState("restarting", error=rests.died_of, retries_in_s=rests.left_s())
        if self.is_stuck:
            return EngineState("failed", error=STUCK)
        refuses_for_s = loads.refuses_for_s()
        return EngineState(
            "unloaded" if loads.error is None else "failed",
            error=loads.error,
            refuses_for_s=refuses_for_s,
            retries_in_s=loads.retries_in_s() if self.has_company else refuses_for_s,
        )

    def load(self) -> None:
        """Load the model although nobody asks anything yet, also when it could not be loaded a moment ago.

        Raises: Stopping after `close`.
        """
        with self._lock:
            if self._processes.is_closed:
                raise Stopping("the engine is stopping and loads nothing")
            if self._processes.rests.died_of is None:
                if not (self.has_company and self.is_stuck):
                    self._processes.have_child()
            else:  # The next process waits: whoever ends its rest starts it.
                self._processes.is_wanted = True

    def keep_alive(self, seconds: float) -> None:
        """Unload after so long without work, negative for never, instead of what the setting says.

        This holds until the model is unloaded, or somebody says otherwise.
        """
        with self._lock:
            self._idle.allowed_s = seconds

    def unload(self) -> None:
        """End the process now if nothing is asked of it, even while it loads; else once that is answered."""
        with self._lock:
            self._processes.is_wanted = False
            if self._processes.child is None:
                return
            self._idle.allowed_s = 0.0
            child = None if self._processes.child.pending else self._processes.let_go()
        if child is not None:
            log.info("the model is unloaded, as somebody wants it")
            self._processes.end(child, at_once=child.loaded is None)

    def set_aside(self, reason: str) -> None:
        """End the process at once, as it answers nothing well, and count that as a load that failed."""
        with self._lock:
            child = self._processes.let_go()
            self._processes.loads.failed(reason)
            back = self._processes.custody.give_back(child, reason, is_dead=False) if child is not None else []
        end_all(back)
        if child is not None:
            self._processes.end(child, at_once=True)
        self._on_change()

    def tick(self, *, more_waits: bool) -> None:
        """End the process once it has been idle for long enough; `more_waits` says that the queue holds work for it."""
        with self._lock:
            child, allowed_s = self._processes.child, self._idle.allowed_s
            if child is None or child.loaded is None or child.pending or more_waits or self._idle.left_s() != 0:
                return
            self._processes.let_go()
        log.info("the model was idle for %g s and is unloaded", allowed_s)
        self._processes.end(child)

    def renew(self, settings: EngineSettings, idle_unload_s: float, limits: Limits) -> None:
        """Work with these settings from now on. What the process of before is at is given to the next one."""
        with self._lock:
            self._idle.renew(idle_unload_s)
            self._processes.limits = limits
            if settings != self._processes.settings and not self._processes.is_closed:
                self._processes.renew(settings)

    def close(self, *, at_once: bool = False) -> None:
        """Take nothing more and end the process; what runs is given up when `at_once`, else must have ended before.

        Returns when every future has ended: callers put away what they need for that next.
        """
        self._processes.close(at_once=at_once)
