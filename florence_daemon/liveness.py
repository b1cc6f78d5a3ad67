"""Which parts of the daemon still do their work, and telling the service manager so for as long as all of them do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from florence_daemon.notify import ServiceManager

log = logging.getLogger(__name__)

# Parts that have nothing to do show life this often.
SHOW_S = 2.0
# A part that is silent for this long hangs; systemd's WatchdogSec may say otherwise for its pings.
SILENT_S = 60.0
# The daemon is ready when every part has shown life; later than this it says so anyway, since HTTP is answered:
# to look at a large or hanging folder for the first time must not count as a start that failed.
READY_S = 30.0
# Seconds between two looks while starting, and between two status lines.
STARTING_S = 0.05
STATUS_S = 5.0


class Liveness:
    """When each part last showed life; any thread may ask or show."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._shown_s: dict[str, float] = {}
        self._begun: set[str] = set()

    def expect(self, part: str) -> Callable[[], None]:
        """Expect life of `part` from now on; it calls what is returned to show it."""
        self._shown_s[part] = self._clock()

        def show() -> None:
            self._shown_s[part] = self._clock()
            self._begun.add(part)

        return show

    def all_begun(self) -> bool:
        """Tell whether every part has shown life."""
        return self._begun.issuperset(self._shown_s)

    def silent(self, within_s: float) -> list[str]:
        """The parts that have not shown life for so long."""
        now_s = self._clock()
        return [part for part, shown_s in self._shown_s.items() if now_s - shown_s > within_s]


class Keeper:
    """Keeps the service manager informed. `tick` is one step; `run` repeats it on a thread of its own.

    A part that hangs stops the pings, and the service manager starts the daemon anew.
    """

    def __init__(
        self,
        manager: ServiceManager,
        liveness: Liveness,
        clock: Callable[[], float],
        *,
        ask: Callable[[], None],
        describe: Callable[[], str],
    ) -> None:
        """ask: makes parts show life that wait for others. describe: how the daemon is doing, in a line."""
        self._manager = manager
        self._liveness = liveness
        self._clock = clock
        self._ask = ask
        self._describe = describe
        self._started_s = clock()
        self._is_ready = False
        self._line = ""
        self._silent: list[str] = []
        self._stopped = threading.Event()

    def run(self) -> None:
        """Repeat `tick` until `stop`."""
        while not self._stopped.is_set():
            self._stopped.wait(self.tick())

    def stop(self) -> None:
        """Make `run` return."""
        self._stopped.set()

    def tick(self) -> float:
        """Tell what there is to tell; return the seconds until the next step."""
        self._ask()
        if not self._is_ready:
            if not self._liveness.all_begun() and self._clock() < self._started_s + READY_S:
                return STARTING_S
            self._is_ready = True
            self._manager.ready()
        watchdog_s = self._manager.watchdog_s
        silent = [] if watchdog_s is None else self._liveness.silent(watchdog_s)
        if silent != self._silent:
            self._say_silent(silent)
        if not silent and watchdog_s is not None:
            self._manager.alive()
        line = f"{', '.join(silent)}: no sign of life" if silent else self._describe()
        if line != self._line:
            self._line = line
            self._manager.status(line)
        return STATUS_S if watchdog_s is None else min(STATUS_S, watchdog_s / 4)

    def _say_silent(self, silent: list[str]) -> None:
        self._silent = silent
        if silent:
            log.error(
                "%s: no sign of life for %g s; the service manager is told nothing until there is one, "
                "and may start the daemon anew", ", ".join(silent), self._manager.watchdog_s,
            )  # fmt: skip
        else:
            log.warning("every part shows life again")
