"""What an engine was asked and has not answered: held for a process, or given to one."""

from __future__ import annotations

from florence_daemon.engine.handle import Child, Ended, Pending
from florence_daemon.engine.member import GivenBack
from florence_daemon.engine.protocol import Request
from florence_daemon.engine.suspects import MAX_CRASHES, choose_to_send


class Custody:
    """Requests of one engine; whoever calls holds the engine's lock.

    held: given to no process yet, because of suspects, or because there is none.
    """

    def __init__(self) -> None:
        self.held: list[Pending] = []

    def allowed(self, child: Child | None) -> list[Pending]:
        """What may be given to this process now."""
        return choose_to_send(self.held, child.pending.values() if child is not None else ())

    def give(self, child: Child, chosen: list[Pending]) -> list[tuple[Child, Request]]:
        """Make these the process's; what is returned must be written to it, without the lock."""
        self.held = [pending for pending in self.held if pending not in chosen]
        child.pending |= {pending.request.id: pending for pending in chosen}
        return [(child, pending.request) for pending in chosen]

    def keep(self, child: Child) -> None:
        """Hold what a process that is let go was at."""
        self.held = _emptied(child) + self.held
        for pending in self.held:
            pending.begin_anew()

    def inherit(self, child: Child, *, is_lost: bool) -> list[Pending]:
        """Hold what a dead process left for the next one; return what is not tried again: all of it if it `is_lost`."""
        left = _emptied(child)
        for pending in left:
            pending.crashes += child.is_blamed(pending)
            pending.begin_anew()
        if is_lost:
            return left + self.drop()
        lost = [pending for pending in left if pending.crashes >= MAX_CRASHES]
        self.held = [pending for pending in left if pending not in lost] + self.held
        return lost

    def give_back(self, child: Child, reason: str, *, is_dead: bool = True) -> list[Ended]:
        """Let go of everything, to be tried by another engine. is_dead: the process may have died of what it was at."""
        left: list[Ended] = [
            (pending, GivenBack(reason, is_suspect=is_dead and child.is_blamed(pending))) for pending in _emptied(child)
        ]
        return left + [(pending, GivenBack(reason)) for pending in self.drop()]

    def drop(self) -> list[Pending]:
        """Hold nothing any more; return what was held."""
        held, self.held = self.held, []
        return held


def _emptied(child: Child) -> list[Pending]:
    left = list(child.pending.values())
    child.pending.clear()
    return left
