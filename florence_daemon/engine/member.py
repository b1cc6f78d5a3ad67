"""What a pool of engines needs of each of them, and what each says of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from florence_daemon.engine.limits import Limits
from florence_daemon.engine.protocol import Ask, Done, EngineSettings, Loaded, Source
from florence_daemon.errors import EngineError, Stopping

MODEL_STATES = ("unloaded", "loading", "loaded", "restarting", "failed")
# Several engines are together as the best of them: with one that is unloaded, they load with the next picture.
BEST_FIRST = ("loaded", "loading", "unloaded", "restarting", "failed")
# What is said of an engine whose process cannot be ended.
STUCK = "its process cannot be ended: its driver or its disk hangs"


@dataclass(frozen=True)
class EngineState:
    """How an engine is doing.

    name: one of MODEL_STATES; restarting: it died, and the next one waits a little.
    unloads_in_s: None while it works, or stays for ever.
    refuses_for_s: after a load that failed, how long until the next request tries again; None when one would.
    keep_alive_s: seconds without work after which it unloads: the setting, or what somebody asked for since it was
    loaded; negative for never.
    retries_in_s: how long it is left out while others can work; None when it is not.
    side_px: of the square that the model sees; None until it was loaded once.
    """

    name: str
    pid: int | None = None
    device: str | None = None
    load_s: float | None = None
    unloads_in_s: float | None = None
    error: str | None = None
    refuses_for_s: float | None = None
    gpu_bytes: int | None = None
    keep_alive_s: float = -1.0
    retries_in_s: float | None = None
    side_px: int | None = None


@dataclass(frozen=True)
class MemberState:
    """How one of the engines is doing. name: what the configuration calls it. running: requests that it was given.

    answered: since the daemon's start, or since it has this name.
    """

    name: str
    state: EngineState
    running: int
    answered: int


def join(members: Sequence[MemberState]) -> EngineState:
    """How engines are doing as if they were one: as well as the best of them; an error of any is told."""
    states = [each.state for each in members]
    if len(states) == 1:
        return states[0]
    best = min(states, key=lambda state: BEST_FIRST.index(state.name))
    loaded = [state for state in states if state.name == "loaded"]
    refused_s = [state.refuses_for_s for state in states if state.refuses_for_s is not None]
    left_s = [state.unloads_in_s for state in loaded if state.unloads_in_s is not None]
    gpu_bytes = [state.gpu_bytes for state in loaded if state.gpu_bytes is not None]
    return EngineState(
        best.name,
        pid=best.pid,
        device=", ".join(dict.fromkeys(str(state.device) for state in loaded)) or None,
        load_s=max((state.load_s for state in loaded if state.load_s is not None), default=None),
        unloads_in_s=max(left_s) if left_s and len(left_s) == len(loaded) else None,
        error="; ".join(_error_of(each) for each in members if each.state.error) or None,
        refuses_for_s=min(refused_s) if len(refused_s) == len(states) else None,
        gpu_bytes=sum(gpu_bytes) if gpu_bytes else None,
        keep_alive_s=best.keep_alive_s,
        side_px=next((state.side_px for state in states if state.side_px is not None), None),
    )


def _error_of(member: MemberState) -> str:
    """Whose error it is, and which; a server's names itself."""
    error = str(member.state.error)
    return error if error.startswith(member.name) else f"{member.name}: {error}"


class GivenBack(EngineError):
    """An engine has not answered a request because its process ended, or cannot begin; another may.

    is_suspect: the process ended while it worked on this one, perhaps because of it.
    """

    def __init__(self, reason: str, *, is_suspect: bool = False) -> None:
        super().__init__(f"the engine process ended while this waited: {reason}")
        self.reason = reason
        self.is_suspect = is_suspect


def stopped() -> Stopping:
    """The error for what is given up at a stop."""
    return Stopping("the daemon stopped before this was answered")


@dataclass(frozen=True)
class Told:
    """Who is told what. on_load: how long each load took. on_change: work can be taken, or can no longer be.

    admit: says why what was loaded may not answer here; None lets it.
    """

    on_load: Callable[[float], None]
    on_change: Callable[[], None]
    admit: Callable[[Loaded], str | None]


class Member(Protocol):
    """One engine of a pool; `process.Engine` is it.

    has_company: there are others, so what it had when its process ended is given back (`GivenBack`) instead of tried
    again here, and none of it is refused for good.
    """

    has_company: bool

    @property
    def is_stuck(self) -> bool:
        """Whether a process of its cannot be ended, and may keep the GPU. It waits for nobody."""

    @property
    def name(self) -> str:
        """What the configuration calls it: its device, or where it is."""

    @property
    def in_flight(self) -> int:
        """How many requests at once keep it busy."""

    @property
    def loaded_on(self) -> str | None:
        """Where its model is; None while there is none. It waits for nobody."""

    def submit(
        self,
        picture: Source,
        asks: tuple[Ask, ...],
        *,
        urgent: bool = False,
        on_begun: Callable[[], None] | None = None,
        crashes: int = 0,
    ) -> Future[Done]:
        """Send a request. crashes: processes that ended while they worked on it. Raises: CheckpointError, Stopping."""

    def state(self) -> EngineState:
        """How it is doing right now."""

    def load(self) -> None:
        """Load the model although nobody asks anything yet."""

    def keep_alive(self, seconds: float) -> None:
        """Unload after so long without work, negative for never; until it is unloaded."""

    def unload(self) -> None:
        """End the process, now or once what is asked of it is answered."""

    def set_aside(self, reason: str) -> None:
        """End the process at once, give back what it is at, and leave the engine out for a while."""

    def tick(self, *, more_waits: bool) -> None:
        """End the process once it has been idle for long enough."""

    def renew(self, settings: EngineSettings, idle_unload_s: float, limits: Limits) -> None:
        """Work with these settings from now on."""

    def close(self, *, at_once: bool = False) -> None:
        """Take nothing more and end the process; returns when every future has ended."""
