"""Several engines behind one door: work goes to whichever is free, and one that fails leaves its work to the others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from florence_daemon.engine.limits import Limits
from florence_daemon.engine.member import EngineState, GivenBack, Member, MemberState, join, stopped
from florence_daemon.engine.process import Engine
from florence_daemon.engine.protocol import Ask, Done, EngineSettings, Loaded, Source
from florence_daemon.engine.seats import Seat, Standing, Ticket, stand, states_of, take_in
from florence_daemon.engine.suspects import MAX_CRASHES, crashed_too_often
from florence_daemon.errors import CheckpointError, EngineError, FlorenceError, Stopping

log = logging.getLogger(__name__)

# Engines that try a picture before it is believed that no engine can answer it.
MAX_TRIES = 2
# An engine that fails so often in a row at what another then answers is set aside, and its process replaced.
MAX_FAULTS = 3
FAULTY = f"it failed {MAX_FAULTS} times in a row at pictures that another engine answered; the log says how"

OpenMember = Callable[[EngineSettings, Callable[[], None]], Member]
"""Makes an engine; what is given is to be called when it can take work, and when it no longer can."""


class Pool:
    """Answers requests with one engine or several; to its users it is one (see `process.Engine`).

    A single engine is given everything at once, and looks after its own crashes. Of several, only those that have their
    model are given anything, as much as keeps them busy; the rest waits here for whoever is free. Another engine is
    loaded when more waits than those can take. What an engine gives back goes to another; a picture that processes died
    of is tried next by an engine that has not died of it, and set aside after as many as `MAX_CRASHES`.
    """

    def __init__(
        self,
        settings: Sequence[EngineSettings],
        idle_unload_s: float,
        *,
        limits: Limits | None = None,
        on_load: Callable[[float], None] = lambda seconds: None,
        admit: Callable[[Loaded], str | None] = lambda loaded: None,
        open_member: OpenMember | None = None,
    ) -> None:
        """settings: of each engine. on_load: told how long each load took. open_member: makes an engine.

        admit: says why what an engine loaded may not answer beside the others; None lets it.
        """
        self._idle_unload_s = idle_unload_s
        self._limits = limits or Limits()
        self._on_load = on_load
        self._admit = admit
        self._open_member = open_member or self._open_engine
        self._lock = threading.Lock()
        self._waiting: list[Ticket] = []
        self._is_wanted = False  # somebody wants a model loaded, though nobody asks anything
        self._closed = False
        self._seats: tuple[Seat, ...] = ()
        self._settings: tuple[EngineSettings, ...] = ()
        self.renew(settings, idle_unload_s, self._limits)

    def submit(
        self,
        picture: Source,
        asks: tuple[Ask, ...],
        *,
        urgent: bool = False,
        on_begun: Callable[[], None] | None = None,
    ) -> Future[Done]:
        """Send a request, loading a model when there is none. on_begun: called when a process begins with it.

        The future ends with CheckpointError while no engine can load. Raises: Stopping after `close`.
        """
        ticket = Ticket(picture, asks, urgent, on_begun)
        ticket.future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise Stopping("the engine is stopping and takes no new work")
            take_in(self._waiting, [ticket])
        self._deal()
        return ticket.future

    @property
    def in_flight(self) -> int:
        """How many requests at once keep all engines busy that can work."""
        seats = self._seats
        if len(seats) == 1:
            return seats[0].member.in_flight
        return max(1, sum(seat.member.in_flight for seat in stand(seats).able))

    def loaded_on(self) -> set[str]:
        """Where models are loaded; it waits for nobody."""
        places = [seat.member.loaded_on for seat in self._seats]
        return {place for place in places if place is not None}

    @property
    def is_stuck(self) -> bool:
        """Whether only a new daemon helps: no engine can work, as no process of theirs can be ended."""
        return all(seat.member.is_stuck for seat in self._seats)

    def state(self) -> EngineState:
        """How the engines are doing, as if they were one."""
        return join(self.members())

    def members(self) -> tuple[MemberState, ...]:
        """How each engine is doing."""
        seats = self._seats
        return tuple(
            MemberState(seat.member.name, state, len(seat.tickets), seat.answered)
            for seat, state in zip(seats, states_of(seats), strict=True)
        )

    def load(self) -> None:
        """Load a model although nobody asks anything yet: of several engines the first that can.

        Where none could a moment ago, all try again, since nobody knows which can now. Raises: Stopping after `close`.
        """
        if self._closed:
            raise Stopping("the engine is stopping and loads nothing")
        seats = self._seats
        if len(seats) == 1:
            seats[0].member.load()
            return
        self._is_wanted = True  # if the first cannot, the next is tried
        standing = stand(seats)
        if not standing.ready:
            for seat in seats if standing.is_hopeless else standing.choose_to_load(1):
                seat.member.load()
        self._deal()

    def keep_alive(self, seconds: float) -> None:
        """Unload each engine after so long without work; see `Engine.keep_alive`."""
        for seat in self._seats:
            seat.member.keep_alive(seconds)

    def unload(self) -> None:
        """End each process once nothing is asked of it."""
        self._is_wanted = False
        for seat in self._seats:
            seat.member.unload()

    def tick(self, *, more_waits: bool) -> None:
        """End the processes that have been idle for long enough; `more_waits` says that the queue holds work.

        That keeps the last one, and those that are to go at once when there is no work.
        """
        for seat in self._seats:
            is_last = sum(each.member.loaded_on is not None for each in self._seats) <= 1
            leaves_at_once = seat.member.state().keep_alive_s == 0
            seat.member.tick(more_waits=more_waits and (is_last or leaves_at_once))
        self._deal()

    def renew(self, settings: Sequence[EngineSettings], idle_unload_s: float, limits: Limits) -> None:
        """Work with engines of these settings from now on; what others were at goes to them."""
        if self._closed:
            return
        self._idle_unload_s, self._limits = idle_unload_s, limits
        kept = self._match(settings)
        has_company = len(settings) > 1
        if not has_company:  # before anything is given to it alone, which it must keep
            self._tell_of_company(kept, False)
        with self._lock:
            gone = [seat for seat in self._seats if seat not in kept]
            self._seats = tuple(seat for seat in self._seats if seat in kept)
        for seat in gone:  # first: two models may be more than the GPU has room for
            seat.member.close(at_once=True)
            seat.close()
        seats = []
        for each, present in zip(settings, kept, strict=True):
            seat = present or Seat(self._open_member(each, self._deal))
            if seat.member.name != each.name:
                seat.begin_anew()
            seat.member.renew(each, idle_unload_s, limits)
            seats.append(seat)
        with self._lock:
            self._seats, self._settings = tuple(seats), tuple(settings)
        self._tell_of_company(seats, has_company)
        self._deal()

    def _tell_of_company(self, seats: Sequence[Seat | None], has_company: bool) -> None:
        for seat in seats:
            if seat is not None:
                seat.member.has_company = has_company

    def _match(self, settings: Sequence[EngineSettings]) -> list[Seat | None]:
        """The present engine for each of these: the one of that name, else one whose name is gone."""
        left = list(zip(self._settings, self._seats, strict=True))
        kept: list[Seat | None] = []
        for each in settings:
            found = next((pair for pair in left if pair[0].name == each.name), None)
            if found is not None:
                left.remove(found)
            kept.append(found[1] if found is not None else None)
        return [seat if seat is not None or not left else left.pop(0)[1] for seat in kept]

    def close(self, *, at_once: bool = False) -> None:
        """Take nothing more and end the processes; returns when every future has ended."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, []
        closing = [
            threading.Thread(target=seat.member.close, kwargs={"at_once": at_once}, name="pool-close", daemon=True)
            for seat in self._seats
        ]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        for seat in self._seats:
            seat.close()
        for ticket in waiting:
            ticket.future.set_exception(stopped())

    def _open_engine(self, settings: EngineSettings, on_change: Callable[[], None]) -> Member:
        return Engine(
            settings,
            self._idle_unload_s,
            limits=self._limits,
            on_load=self._on_load,
            on_change=on_change,
            admit=self._admit,
        )

    def _deal(self) -> None:
        """Give what waits to those that are free, load others for the rest, and give up what nobody can take."""
        with self._lock:
            seats = self._seats
            if self._closed or not (self._waiting or self._is_wanted):
                return
            if len(seats) == 1:
                given, self._waiting = [(seats[0], ticket) for ticket in self._waiting], []
                seats[0].tickets += [ticket for _, ticket in given]
                self._is_wanted = False
            else:
                standing = stand(seats)
                given = self._give(standing)
                to_load = standing.choose_to_load(max(len(self._waiting), self._is_wanted))
                lost = self._give_up() if standing.is_hopeless else []
        if len(seats) == 1:
            for seat, ticket in given:
                self._hand(seat, ticket)
            return
        for seat, ticket in given:
            seat.do(self._hand, seat, ticket)
        for seat in to_load:
            seat.do(seat.member.load)
        together = self.state()
        for ticket in lost:
            error = CheckpointError(str(together.error or "no engine can work"), together.refuses_for_s)
            ticket.future.set_exception(error)

    def _give(self, standing: Standing) -> list[tuple[Seat, Ticket]]:
        """Take those that wait to their engines; the lock is held."""
        self._is_wanted = self._is_wanted and not standing.ready
        given, left = [], []
        for ticket in self._waiting:
            seat = standing.choose(ticket)
            if seat is None:
                left.append(ticket)
            else:
                seat.tickets.append(ticket)
                given.append((seat, ticket))
        self._waiting = left
        return given

    def _give_up(self) -> list[Ticket]:
        lost, self._waiting, self._is_wanted = self._waiting, [], False
        return lost

    def _hand(self, seat: Seat, ticket: Ticket) -> None:
        """Send a request to its engine."""
        try:
            answered = seat.member.submit(
                ticket.picture,
                ticket.asks,
                urgent=ticket.urgent,
                on_begun=ticket.on_begun,
                crashes=len(ticket.crashed),
            )
        except FlorenceError as error:
            answered = Future()
            answered.set_exception(error)
        answered.add_done_callback(partial(self._take, seat, ticket))

    def _take(self, seat: Seat, ticket: Ticket, answered: Future[Done]) -> None:
        """Pass an answer on, or have another engine try; called by the engine's thread."""
        error = answered.exception()
        faulty: list[Seat] = []
        with self._lock:
            seat.tickets.remove(ticket)
            if error is None:
                seat.answered, seat.faults = seat.answered + 1, 0
                faulty = _find_faulty(ticket)
            goes_on = error is not None and self._goes_on(seat, ticket, error)
            if goes_on:
                ticket.is_returned = True
                take_in(self._waiting, [ticket])
        for each in faulty:
            each.do(each.member.set_aside, FAULTY)
        self._deal()
        if goes_on:
            return
        if error is None:
            ticket.future.set_result(answered.result())
        else:
            ticket.future.set_exception(self._said(ticket, error))

    def _goes_on(self, seat: Seat, ticket: Ticket, error: BaseException) -> bool:
        """Tell whether another engine is to try; the lock is held."""
        if self._closed:
            return False
        if isinstance(error, GivenBack):
            ticket.crashed += [seat] * error.is_suspect
            return len(ticket.crashed) < MAX_CRASHES
        if isinstance(error, CheckpointError):
            return len(self._seats) > 1
        if type(error) is EngineError and len(self._seats) > 1:
            ticket.failed.append(seat)
            return len(ticket.failed) < MAX_TRIES and bool(stand(self._seats).fresh(ticket))
        return isinstance(error, Stopping)  # this engine goes, as another configuration wants it

    def _said(self, ticket: Ticket, error: BaseException) -> BaseException:
        """What those are told who wait."""
        if not isinstance(error, GivenBack):
            return error
        if self._closed:
            return stopped()
        return crashed_too_often(len(ticket.crashed), error.reason)


def _find_faulty(ticket: Ticket) -> list[Seat]:
    """The engines that have failed at what another has answered now, and that too often; the pool's lock is held."""
    faulty = []
    for seat in ticket.failed:
        seat.faults += 1
        if seat.faults >= MAX_FAULTS:
            seat.faults = 0
            faulty.append(seat)
    return faulty
