"""How long the model stays without work: as the setting says, or as somebody asked for since it was loaded."""

from __future__ import annotations

from collections.abc import Callable


class IdleTime:
    """Counts the seconds without work. allowed_s: after so many the model is unloaded; negative for never.

    What somebody asks for holds until the model is unloaded or somebody asks for something else, as with Ollama's
    `keep_alive`. Whoever calls holds the engine's lock.
    """

    def __init__(self, setting_s: float, clock: Callable[[], float]) -> None:
        self.allowed_s = setting_s
        self._setting_s = setting_s
        self._clock = clock
        self._since_s = clock()

    def begin(self) -> None:
        """Note that work ended just now, or that the model has just come."""
        self._since_s = self._clock()

    def begin_anew(self) -> None:
        """Note that the model goes: the next one stays as long as the setting says."""
        self.allowed_s = self._setting_s

    def renew(self, setting_s: float) -> None:
        """Let another setting count; what somebody asked for holds unless it has changed."""
        if setting_s != self._setting_s:
            self._setting_s = self.allowed_s = setting_s

    def left_s(self) -> float | None:
        """How long until the model is unloaded, if nothing is asked until then; None for never."""
        if self.allowed_s < 0:
            return None
        return max(0.0, self._since_s + self.allowed_s - self._clock())
