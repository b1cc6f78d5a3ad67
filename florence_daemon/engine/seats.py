"""Requests that wait for an engine, the places that engines have, and who gets which."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from florence_daemon.engine.member import EngineState, Member
from florence_daemon.engine.protocol import Ask, Done, Source
from florence_daemon.errors import Stopping

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Ticket:
    """A request on its way to an engine, and whoever waits for its answer.

    crashed: the engines whose process ended while it worked on this, one for each time. failed: those that said that
    they cannot answer it, though it is a picture. is_returned: an engine had it.
    """

    picture: Source
    asks: tuple[Ask, ...]
    urgent: bool
    on_begun: Callable[[], None] | None
    future: Future[Done] = field(default_factory=Future)
    crashed: list[Seat] = field(default_factory=list)
    failed: list[Seat] = field(default_factory=list)
    is_returned: bool = False

    @property
    def is_suspect(self) -> bool:
        """Whether a process ended while it worked on this, perhaps because of it."""
        return bool(self.crashed)

    @property
    def rank(self) -> tuple[int, bool]:
        """Whose turn is first: people's, then what comes back, suspects last of it, then what is new."""
        if self.is_suspect:
            return 2, not self.urgent
        return (0, False) if self.urgent else (1 if self.is_returned else 3, False)


class Seat:
    """An engine of the pool and what it was given."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.tickets: list[Ticket] = []
        self.answered = 0
        self.faults = 0  # in a row: what it could not answer, and another could
        # Whoever writes to a process that hangs waits for it, and nobody else may wait with him.
        self._hands = ThreadPoolExecutor(1, thread_name_prefix="pool-hand")

    def begin_anew(self) -> None:
        """Count from nothing: it is another engine from now on."""
        self.answered = self.faults = 0

    @property
    def has_suspect(self) -> bool:
        """Whether it was given one that a process may have died of, and whatever else it is given may wait for that."""
        return any(each.is_suspect for each in self.tickets)

    def has_place(self, ticket: Ticket) -> bool:
        """Tell whether it may be given this one: people and all others have as many places each.

        While it tries a suspect it gets nothing new but from people: the suspect is tried alone.
        """
        if not ticket.urgent and self.has_suspect:
            return False
        return sum(each.urgent == ticket.urgent for each in self.tickets) < self.member.in_flight

    @property
    def load(self) -> float:
        """How much of what keeps it busy it has."""
        return len(self.tickets) / self.member.in_flight

    def do(self, work: Callable[..., object], *arguments: Any) -> None:
        """Do what may wait for this engine's process, in turn, without waiting for it."""
        try:
            self._hands.submit(_do, work, *arguments)
        except RuntimeError:  # Closed meanwhile, and its engine too, which says so itself.
            _do(work, *arguments)

    def close(self) -> None:
        """Do nothing more."""
        self._hands.shutdown(wait=False)


def _do(work: Callable[..., object], *arguments: Any) -> None:
    """A thread's whole job."""
    try:
        work(*arguments)
    except Stopping:
        return  # the engine was closed meanwhile
    except Exception:
        log.exception("an engine failed in a way nobody foresaw")


@dataclass(frozen=True)
class Standing:
    """Which engines can work. able: is, or could be; ready: has its model. is_hopeless: none can, nor will soon."""

    able: tuple[Seat, ...]
    ready: tuple[Seat, ...]
    loading: tuple[Seat, ...]
    is_hopeless: bool

    def choose(self, ticket: Ticket) -> Seat | None:
        """The engine with the most room; for a suspect one that has not died of it, even if it must load first.

        People come to one that tries a suspect only where there is no other: should it hang, they would wait for that.
        """
        fresh = self.fresh(ticket)
        free = [seat for seat in self.ready if (seat in fresh or not fresh) and seat.has_place(ticket)]
        return min(free, key=lambda seat: (seat.has_suspect, seat.load), default=None)

    def fresh(self, ticket: Ticket) -> list[Seat]:
        """Those that could work and have not failed at this one."""
        return [seat for seat in self.able if seat not in ticket.crashed and seat not in ticket.failed]

    def choose_to_load(self, waiting: int) -> list[Seat]:
        """The engines that are worth loading when so many wait: one ad-hoc request must not load all of them."""
        coming = sum(seat.member.in_flight for seat in self.loading)
        chosen: list[Seat] = []
        for seat in self.able:
            if waiting > coming and seat not in self.ready and seat not in self.loading:
                chosen.append(seat)
                coming += seat.member.in_flight
        return chosen


def stand(seats: Iterable[Seat]) -> Standing:
    """Look at the engines. One that could not load is left out for a while, unless no other can work."""
    states = [(seat, seat.member.state()) for seat in seats]
    could = [(seat, state) for seat, state in states if _could_work(seat, state)]
    able = [(seat, state) for seat, state in could if state.retries_in_s is None] or could
    return Standing(
        able=tuple(seat for seat, _ in able),
        ready=tuple(seat for seat, state in able if state.name == "loaded"),
        loading=tuple(seat for seat, state in able if state.name == "loading"),
        is_hopeless=not able and not any(state.name == "restarting" for _, state in states),
    )


def _could_work(seat: Seat, state: EngineState) -> bool:
    return not seat.member.is_stuck and state.refuses_for_s is None and state.name != "restarting"


def states_of(seats: Sequence[Seat]) -> list[EngineState]:
    """How each is doing. Where none can work, the next request tries also those that are left out while others can."""
    states = [seat.member.state() for seat in seats]
    if any(state.retries_in_s is None and not seat.member.is_stuck for seat, state in zip(seats, states, strict=True)):
        return states
    return [replace(state, retries_in_s=state.refuses_for_s) if state.name == "failed" else state for state in states]


def take_in(waiting: list[Ticket], tickets: Sequence[Ticket]) -> None:
    """Add to those that wait, each where its turn is."""
    waiting += tickets
    waiting.sort(key=lambda ticket: ticket.rank)
