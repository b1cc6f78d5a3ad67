"""Who is sent to the next engine process after one died: what it had begun is suspect, and goes alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from florence_daemon.engine.handle import Pending
from florence_daemon.errors import EngineCrashed

# A picture that brought the engine process down this often is set aside.
MAX_CRASHES = 3


def choose_to_send(held: Sequence[Pending], at_work: Collection[Pending]) -> list[Pending]:
    """Choose what of the held may be sent now: all, unless there are suspects, each of which must be at work alone."""
    if any(pending.is_suspect for pending in at_work):
        return []
    suspects = [pending for pending in held if pending.is_suspect]
    if not suspects:
        return list(held)
    urgent = [pending for pending in held if pending.request.urgent and not pending.is_suspect]
    if urgent or at_work:
        return urgent
    return [next((pending for pending in suspects if pending.request.urgent), suspects[0])]


def choose_first(held: Sequence[Pending]) -> list[Pending]:
    """Choose what the next process gets at once: everything above suspicion, so that it does not wait for the rest."""
    return [pending for pending in held if not pending.is_suspect] or choose_to_send(held, ())


def crashed_too_often(crashes: int, died_of: str) -> EngineCrashed:
    """The error for a picture that is set aside."""
    return EngineCrashed(
        f"the engine process ended {crashes} times while it worked on this picture ({died_of}); it is set aside"
    )
