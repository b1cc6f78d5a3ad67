"""What one engine process may take of time and memory, and whether it has taken more."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from florence_daemon.engine.handle import STUCK_S, Child, Excess, taken_bytes
from florence_daemon.engine.memory import all_ram_bytes

log = logging.getLogger(__name__)

# What the engine process may have of the machine's memory: the rest is for the daemon and the system.
SHARE = 0.9
# Seconds between two looks at a process. Memory can grow by gigabytes in a second.
LOOK_S = 0.1
# A look that comes this late was held up by more than the machine's load: the daemon or the machine slept.
SLEPT_S = 2.0


@dataclass(frozen=True)
class Limits:
    """Seconds and bytes; `config.ModelConfig` says what each is for. memory_bytes: None sets no limit."""

    load_s: float = math.inf
    decode_s: float = math.inf
    request_s: float = math.inf
    memory_bytes: int | None = None


def memory_limit_bytes(setting_mb: int) -> int | None:
    """Turn `model.memory_limit_mb` into bytes; None where there is to be no limit, or none can be known."""
    if setting_mb > 0:
        return setting_mb * 2**20
    ram_bytes = None if setting_mb < 0 else all_ram_bytes()
    return None if ram_bytes is None else int(SHARE * ram_bytes)


def oversee(child: Child, limits: Limits, clock: Callable[[], float], lock: AbstractContextManager[object]) -> bool:
    """Look at a process until it has ended, and end it once it has passed a limit; a thread's whole job.

    lock: held while `child.pending` is read. Returns false when the process cannot be ended.
    """
    overseer = Overseer(limits, child, clock())
    while not child.ended.wait(LOOK_S):
        with lock:
            excess = overseer.look(clock(), taken_bytes(child.process.pid))
        if excess is None or child.is_stopping:
            continue
        log.error("the engine process %d is ended: %s", child.process.pid, excess.reason)
        child.end(excess)
        if not child.ended.wait(STUCK_S):
            return False
    return True


class Overseer:
    """Looks at one process again and again."""

    def __init__(self, limits: Limits, child: Child, now_s: float) -> None:
        self._limits = limits
        self._child = child
        self._looked_s = now_s

    def look(self, now_s: float, taken_bytes: int | None) -> Excess | None:
        """Find the limit that the process has passed. taken_bytes: None where the system does not tell."""
        if now_s - self._looked_s > SLEPT_S:
            self._child.forgive(now_s - self._looked_s)
        self._looked_s = now_s
        return self._memory(taken_bytes) or self._loading(now_s) or self._decoding(now_s) or self._silence(now_s)

    def _memory(self, taken_bytes: int | None) -> Excess | None:
        limit_bytes = self._limits.memory_bytes
        if limit_bytes is None or taken_bytes is None or taken_bytes <= limit_bytes:
            return None
        return Excess(
            f"it took {taken_bytes / 2**20:,.0f} MB of memory, and model.memory_limit_mb "
            f"allows {limit_bytes / 2**20:,.0f}"
        )

    def _loading(self, now_s: float) -> Excess | None:
        if self._child.loaded is not None or now_s - self._child.sign_s <= self._limits.load_s:
            return None
        return Excess(f"loading took longer than {self._limits.load_s:g} s, model.load_limit_s")

    def _decoding(self, now_s: float) -> Excess | None:
        limit_s = self._limits.decode_s
        late = {
            each.request.id
            for each in self._child.pending.values()
            if each.begun_s is not None and each.read_s is None and now_s - each.begun_s > limit_s
        }
        if not late:
            return None
        return Excess(f"to read the picture took longer than {limit_s:g} s, model.decode_limit_s", frozenset(late))

    def _silence(self, now_s: float) -> Excess | None:
        """The model has a picture, and not even a step of its decoder ends."""
        read_s = [each.read_s for each in self._child.pending.values() if each.read_s is not None]
        if not read_s or now_s - max(self._child.sign_s, min(read_s)) <= self._limits.request_s:
            return None
        return Excess(f"the model showed no life for {self._limits.request_s:g} s, model.request_limit_s")
