"""One engine process after another: started, buried; what one leaves goes to the next, or is given back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from florence_daemon.engine.custody import Custody
from florence_daemon.engine.handle import Child, Ended, Pending, end_all, start_child, write_all
from florence_daemon.engine.idle import IdleTime
from florence_daemon.engine.limits import Limits, oversee
from florence_daemon.engine.loads import Loads
from florence_daemon.engine.member import STUCK, Told, stopped
from florence_daemon.engine.pipe import read_message
from florence_daemon.engine.protocol import (
    Alive,
    Begun,
    Done,
    EngineSettings,
    Failed,
    HasRead,
    Loaded,
    LoadFailed,
    Reply,
    Request,
    error_of,
)
from florence_daemon.engine.rests import Rests
from florence_daemon.engine.suspects import choose_first, crashed_too_often

log = logging.getLogger(__name__)

# A close waits so long until everybody who waited for an answer has been told that there is none.
TOLD_S = 5.0
# Requests that the engine is worth giving at once before it has said how many keep it busy.
FIRST_IN_FLIGHT = 4


class Succession:
    """The process that an engine has now, if any, and what was asked of it and the ones before.

    Whoever calls, or reads what is not a constant, holds `lock`; what says that it waits is called without it.
    child: the process of now. has_company: what a process leaves is given back, for other engines to try.
    is_wanted: a process is to be started once it may be, though nobody asks anything.
    """

    def __init__(
        self, settings: EngineSettings, idle: IdleTime, clock: Callable[[], float], limits: Limits, told: Told
    ) -> None:
        self.lock = threading.RLock()
        self.settings = settings
        self.limits = limits
        self.has_company = False
        self.is_wanted = False
        self.is_closed = False
        self.child: Child | None = None
        self.custody = Custody()
        self.in_flight = FIRST_IN_FLIGHT
        self.side_px: int | None = None
        self.loads = Loads(settings, clock)
        self.rests = Rests()
        self._idle = idle
        self._clock = clock
        self._told = told
        self._stuck: Child | None = None
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []  # those that end futures
        # Linux kills the process when the thread that started it ends, so that is one which stays.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="engine-start")

    @property
    def is_stuck(self) -> bool:
        """Whether a process cannot be ended, and may keep the GPU: only a new daemon helps. It needs no lock."""
        return self._stuck is not None

    def assign(self, chosen: list[Pending]) -> list[tuple[Child, Request]]:
        """Give these to the process, starting one when there is none; the caller writes them without the lock."""
        if not chosen or self.rests.died_of is not None or self.is_closed:
            return []
        child = self.have_child()
        return [] if child is None else self.custody.give(child, chosen)

    def have_child(self) -> Child | None:
        """The process, started when there is none; None when it cannot be started, which is tried again later."""
        try:
            self.child = self.child or self._start()
        except OSError as error:
            self._rest(f"it could not be started: {error}")
        return self.child

    def let_go(self) -> Child | None:
        """Forget the process, which the caller ends without the lock."""
        child, self.child = self.child, None
        self._idle.begin_anew()
        if child is not None:
            child.is_stopping = True
        return child

    def end(self, child: Child, *, at_once: bool = False) -> None:
        """End a process that was let go; it waits for that."""
        if not child.stop(at_once=at_once):
            self._abandon(child)

    def renew(self, settings: EngineSettings) -> None:
        """Go on with these settings. What the process of before is at is given to the next one."""
        self.settings = settings
        self.loads = Loads(settings, self._clock)
        self.in_flight, self.side_px = FIRST_IN_FLIGHT, None
        child = self.let_go()
        if child is None:
            return
        self.custody.keep(child)
        self.rests.died_of = "the settings of the model have changed"
        log.info("the settings of the model have changed; its process is replaced")
        self._begin_thread("engine-renew", self._replace, child)

    def close(self, *, at_once: bool) -> None:
        """End the process and take no other; it waits until every future has ended."""
        with self.lock:
            self.is_closed = True
            child, self.child = self.child, None
        self._closing.set()
        if child is not None:
            self.end(child, at_once=at_once)
        self._starter.shutdown(wait=False)
        deadline_s = time.monotonic() + TOLD_S
        with self.lock:
            telling = self._threads
        for thread in telling:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _start(self) -> Child:
        child = self._starter.submit(start_child, self.settings).result()
        child.sign_s = self._clock()
        self._begin_thread("engine-replies", self._read, child)
        threading.Thread(target=self._oversee, args=(child,), name="engine-limits", daemon=True).start()
        # A server that sleeps is asked again every half minute, perhaps for a night.
        is_again = self.settings.server is not None and self.loads.error is not None
        level = logging.DEBUG if is_again else logging.INFO
        log.log(level, "engine process %d started, loading %s", child.process.pid, self.settings.model)
        return child

    def _begin_thread(self, name: str, work: Callable[..., None], *arguments: object) -> None:
        """Start a thread that ends futures."""
        thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def _replace(self, child: Child) -> None:
        """End a process and go on with the next; a thread's whole job. Two models at once may be more than fits."""
        self.end(child)
        self.resume_after(0.0)

    def _oversee(self, child: Child) -> None:
        """End one process once it has passed a limit; its own thread."""
        if not oversee(child, self.limits, self._clock, self.lock):
            self._abandon(child)

    def _abandon(self, child: Child) -> None:
        """Leave a process that cannot be ended; where there are other engines, what it was at is theirs."""
        log.error("the engine process %d cannot be ended: its driver or its disk hangs", child.process.pid)
        ends: list[Ended] = []
        with self.lock:
            self._stuck = child
            if self.is_closed:
                ends = [(pending, stopped()) for pending in self.custody.inherit(child, is_lost=True)]
            elif self.has_company and self.child in (child, None):
                self.child = None
                ends = self.custody.give_back(child, STUCK)
        end_all(ends)
        self._told.on_change()

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
        if isinstance(reply, Loaded):
            self._welcome(child, reply)
        elif isinstance(reply, Begun | HasRead):
            self._follow(child, reply)
        elif isinstance(reply, Done | Failed):
            self._answer(child, reply)
        else:
            with self.lock:
                self._hear(child, reply)

    def _welcome(self, child: Child, loaded: Loaded) -> None:
        """The model is there."""
        with self.lock:
            if child.is_stopping:
                return
            child.load_error = self._told.admit(loaded)
            if child.load_error is not None:
                child.process.kill()
                return
            child.sign_s, child.gpu_bytes, child.loaded = self._clock(), loaded.gpu_bytes, loaded
            self.loads.succeeded()
            self.in_flight, self.side_px = loaded.in_flight, loaded.side_px
            self._idle.begin()
            self._told.on_load(loaded.load_s)
        log.info("model loaded on %s in %.1f s", loaded.device, loaded.load_s)
        self._told.on_change()

    def _hear(self, child: Child, reply: Alive | LoadFailed) -> None:
        if isinstance(reply, LoadFailed):
            child.load_error = reply.message
            return
        child.sign_s, child.gpu_bytes = self._clock(), reply.gpu_bytes
        self.in_flight = reply.in_flight or self.in_flight

    def _follow(self, child: Child, reply: Begun | HasRead) -> None:
        """Note how far a request is."""
        with self.lock:
            pending = child.at_work_on(reply.id)
            if pending is None:
                return
            if isinstance(reply, HasRead):
                pending.read_s = self._clock()
                return
            pending.begun_s = self._clock()
        if pending.on_begun is not None:
            pending.on_begun()

    def _answer(self, child: Child, reply: Done | Failed) -> None:
        """A request has ended: tell whoever waits, and send what may come after it."""
        with self.lock:
            pending = child.at_work_on(reply.id)
            if pending is None:
                return
            del child.pending[reply.id]
            child.sign_s = self._clock()
            self._idle.begin()
            self.rests.forget()
            if isinstance(reply, Done):
                self.loads.answered()
            sent = self.assign(self.custody.allowed(self.child))
        write_all(sent)
        if isinstance(reply, Failed):
            pending.future.set_exception(error_of(reply))
        else:
            pending.future.set_result(reply)

    def _bury(self, child: Child) -> None:
        """The process has ended: send what it left unanswered to the next one, give it back, or give it up."""
        died_of = child.bury()
        with self.lock:
            if self._stuck is child:
                self._stuck = None
            if self.child is child:
                self.child = None
            self._idle.begin()
            # Why nothing that it left can be answered; None when the next process may.
            error = stopped() if self.is_closed else self.loads.judge(child, died_of)
            ends: list[Ended]
            if self.has_company and error is None and not child.is_stopping:
                ends = self.custody.give_back(child, died_of)
            else:
                lost = self.custody.inherit(child, is_lost=error is not None)
                ends = [(pending, error or crashed_too_often(pending.crashes, died_of)) for pending in lost]
                if lost:
                    self.rests.forget()  # the cause is found
            if error is None and not child.is_stopping:
                self._rest(died_of)
        end_all(ends)
        self._told.on_change()

    def _rest(self, died_of: str) -> None:
        """Let the next process wait a little."""
        seconds = self.rests.begin(died_of)
        where = f" of {self.settings.name}" if self.has_company else ""
        log.warning("the engine process%s ended (%s); it is started again in %g s", where, died_of, seconds)
        self._begin_thread("engine-rest", self.resume_after, seconds)

    def resume_after(self, seconds: float) -> None:
        """Go on with what waits, or give it up at a stop; a thread's whole job."""
        self._closing.wait(seconds)
        with self.lock:
            self.rests.end()
            ends: list[Ended] = [(pending, stopped()) for pending in self.custody.drop()] if self.is_closed else []
            sent = self.assign(choose_first(self.custody.held))
            if self.is_wanted and not self.is_closed:
                self.is_wanted = self.have_child() is None
        write_all(sent)
        end_all(ends)
        self._told.on_change()
