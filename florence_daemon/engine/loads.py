"""Whether the model can be had: why the last load failed, and how long nobody tries again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from florence_daemon.engine.handle import Child
from florence_daemon.engine.suspects import MAX_CRASHES
from florence_daemon.errors import CheckpointError

log = logging.getLogger(__name__)

# After the model could not be loaded, requests are refused for this long: every try costs seconds and may download.
LOAD_RETRY_S = 30.0


class Loads:
    """What is known of loads that failed; whoever calls holds the engine's lock. error: None while none has."""

    def __init__(self, model: str, clock: Callable[[], float]) -> None:
        self.error: str | None = None
        self._model = model
        self._clock = clock
        self._failed_s = 0.0
        self._crashes = 0  # in a row

    def refuses_for_s(self) -> float | None:
        """How long until the next request tries again; None when one would."""
        if self.error is None:
            return None
        left_s = self._failed_s + LOAD_RETRY_S - self._clock()
        return left_s if left_s > 0 else None

    def succeeded(self) -> None:
        """Note that the model is there."""
        self.error, self._crashes = None, 0

    def judge(self, child: Child, died_of: str) -> CheckpointError | None:
        """Why the model cannot be had, when that is what a process's end tells: it said so, or never got so far."""
        reason = child.load_error
        if child.loaded is None and reason is None and not child.is_stopping:
            reason = self._crashed(died_of)
        if child.loaded is None and child.excess is not None:
            reason = f"{self._model} could not be loaded: {died_of}"
        if reason is None:
            return None
        self.error, self._failed_s, self._crashes = reason, self._clock(), 0
        log.error("%s", reason)
        return CheckpointError(reason)

    def _crashed(self, died_of: str) -> str | None:
        """What is said of a process that died while it loaded; nothing before it was tried often enough."""
        self._crashes += 1
        if self._crashes < MAX_CRASHES:
            return None
        return (
            f"the engine process ended {self._crashes} times while it loaded {self._model} ({died_of}); "
            "is there enough memory for it?"
        )
