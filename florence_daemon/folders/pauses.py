"""Folders that cannot be written to: how long each one rests, and whether it is well again."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from florence_daemon.folders.atomic import unfinished_name

# Seconds of the first rest; each further one is twice as long, up to the longest.
FIRST_S = 1.0
LONGEST_S = 300.0
# An empty file can still be made on a full disk, so the probe holds about as much as a sidecar.
PROBE_BYTES = 4096


@dataclass
class _Pause:
    """scope: the directory below which nothing is captioned; the whole root until it was looked at."""

    directory: str
    reason: str
    delay_s: float = 0.0
    until_s: float = 0.0
    scope: str | None = None


class Pauses:
    """What rests below one root. A full disk rests the root, one forbidden folder only itself.

    `add`, `holds` and `reasons` may be called from any thread and never touch the disk; `tick` belongs to one thread.
    """

    def __init__(self, root: str, can_write: Callable[[str], bool] | None = None) -> None:
        self._root = root
        self._can_write = can_write or can_write_in
        self._lock = threading.Lock()
        self._pauses: list[_Pause] = []
        # How long a scope rested last and when that ended: one that fails soon after rests longer.
        self._recent: dict[str, tuple[float, float]] = {}

    def add(self, path: str, reason: str) -> None:
        """Rest the root, because the sidecars of `path` could not be written; `tick` may find that less is enough."""
        with self._lock:
            if not any(self._covers(pause, path) for pause in self._pauses):
                self._pauses.append(_Pause(os.path.dirname(path), reason))

    def holds(self, path: str) -> bool:
        """Tell whether this image must wait."""
        with self._lock:
            return any(self._covers(pause, path) for pause in self._pauses)

    def holds_all(self) -> bool:
        """Tell whether the whole root rests."""
        with self._lock:
            return any(pause.scope in (None, self._root) for pause in self._pauses)

    def reasons(self) -> list[str]:
        """Why something rests, one reason for each."""
        with self._lock:
            return [pause.reason for pause in self._pauses]

    def tick(self, now_s: float) -> list[str]:
        """Try what is due; return the directories that go on, to be scanned again."""
        with self._lock:
            due = [pause for pause in self._pauses if pause.until_s <= now_s]
        again = []
        for pause in due:
            if pause.scope is None:
                again += self._choose_scope(pause, now_s)
            elif self._can_write(pause.directory):
                again.append(pause.scope)
                self._end(pause, pause.scope, now_s)
            else:
                with self._lock:
                    pause.delay_s = min(2 * pause.delay_s, LONGEST_S)
                    pause.until_s = now_s + pause.delay_s
        return again

    def next_due_s(self) -> float | None:
        """When `tick` has something to do, or None."""
        with self._lock:
            return min((pause.until_s for pause in self._pauses), default=None)

    def _choose_scope(self, pause: _Pause, now_s: float) -> list[str]:
        """Rest the one directory where the root itself can be written; then all else goes on at once."""
        is_local = pause.directory != self._root and self._can_write(self._root)
        scope = pause.directory if is_local else self._root
        last_s, ended_s = self._recent.pop(scope, (0.0, -LONGEST_S))
        with self._lock:
            pause.scope = scope
            pause.delay_s = min(2 * last_s, LONGEST_S) if last_s and now_s - ended_s < LONGEST_S else FIRST_S
            pause.until_s = now_s + pause.delay_s
        return [self._root] if is_local else []

    def _end(self, pause: _Pause, scope: str, now_s: float) -> None:
        self._recent = {each: kept for each, kept in self._recent.items() if now_s - kept[1] < LONGEST_S}
        self._recent[scope] = (pause.delay_s, now_s)
        with self._lock:
            self._pauses.remove(pause)

    def _covers(self, pause: _Pause, path: str) -> bool:
        return pause.scope in (None, self._root) or os.path.dirname(path) == pause.scope


def can_write_in(directory: str) -> bool:
    """Tell whether a file can be made there; true for a directory that is gone, which a scan tells better."""
    path = os.path.join(directory, unfinished_name())
    try:
        with open(path, "xb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return True
