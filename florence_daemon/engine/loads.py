"""Whether the model can be had: why the last load failed, and how long nobody tries again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from florence_daemon.engine.handle import Child
from florence_daemon.engine.protocol import EngineSettings
from florence_daemon.engine.suspects import MAX_CRASHES
from florence_daemon.errors import CheckpointError

log = logging.getLogger(__name__)

# After the model could not be loaded, requests are refused for this long: every try costs seconds and may download.
LOAD_RETRY_S = 30.0
# While other engines can work, one that could not load is left out this long, twice as long after every further time.
LONGEST_LEFT_OUT_S = 600.0
# After a server did not answer, for so long at first, and twice as long after every further time.
SERVER_RETRY_S, LONGEST_SERVER_RETRY_S = 1.0, 60.0


class Loads:
    """What is known of loads that failed; whoever calls holds the engine's lock. error: None while none has."""

    def __init__(self, settings: EngineSettings, clock: Callable[[], float]) -> None:
        """To ask a server whether it is back costs little, and to load a model much."""
        is_server = settings.server is not None
        self.error: str | None = None
        self._first_s = SERVER_RETRY_S if is_server else LOAD_RETRY_S
        self._longest_s = LONGEST_SERVER_RETRY_S if is_server else LONGEST_LEFT_OUT_S
        self._model = settings.model
        self._clock = clock
        self._failed_s = 0.0
        self._failures = 0  # since the model last answered
        self._crashes = 0  # in a row

    def refuses_for_s(self) -> float | None:
        """How long until the next request tries again; None when one would."""
        if self.error is None:
            return None
        return self._left_s(LOAD_RETRY_S)

    def retries_in_s(self) -> float | None:
        """How long it is not tried while other engines can work; None when it is."""
        if self.error is None:
            return None
        return self._left_s(self._longest_s)

    def _left_s(self, longest_s: float) -> float | None:
        wait_s = min(longest_s, self._first_s * 2 ** min(self._failures - 1, 10))
        left_s = self._failed_s + wait_s - self._clock()
        return left_s if left_s > 0 else None

    def succeeded(self) -> None:
        """Note that the model is there."""
        self.error, self._crashes = None, 0

    def answered(self) -> None:
        """Note that the model has answered something."""
        self._failures = 0

    def judge(self, child: Child, died_of: str) -> CheckpointError | None:
        """Why the model cannot be had, when that is what a process's end tells: it said so, or never got so far.

        One that was let go says nothing of the next.
        """
        if child.is_stopping:
            return None
        reason = child.load_error
        if child.loaded is None and reason is None:
            reason = self._crashed(died_of)
        if child.loaded is None and child.excess is not None:
            reason = f"{self._model} could not be loaded: {died_of}"
        if reason is None:
            return None
        self.failed(reason)
        return CheckpointError(reason, self.refuses_for_s())

    def failed(self, reason: str) -> None:
        """Note why the model cannot be had now."""
        level = logging.DEBUG if reason == self.error else logging.ERROR  # told once, however often it is tried
        self.error, self._failed_s, self._crashes = reason, self._clock(), 0
        self._failures += 1
        log.log(level, "%s", reason)

    def _crashed(self, died_of: str) -> str | None:
        """What is said of a process that died while it loaded; nothing before it was tried often enough."""
        self._crashes += 1
        if self._crashes < MAX_CRASHES:
            return None
        return (
            f"the engine process ended {self._crashes} times while it loaded {self._model} ({died_of}); "
            "is there enough memory for it?"
        )
