"""Have the model loaded or unloaded now: `POST /load` and `POST /unload`."""

from __future__ import annotations

from typing import Protocol

import falcon

from florence_daemon.engine.member import EngineState
from florence_daemon.http.actions import read_members
from florence_daemon.http.question import keep_alive_of


class Residence(Protocol):
    """Where the model lives: the engine."""

    def load(self) -> None:
        """Load the model although nobody asks anything yet."""

    def unload(self) -> None:
        """Give the model's memory back, as soon as nothing is asked of it."""

    def keep_alive(self, seconds: float) -> None:
        """Unload after so long without work, negative for never; until the model is unloaded."""

    def state(self) -> EngineState:
        """How the model is doing."""


class LoadResource:
    """`POST /load`: the model is loaded; who wants to know when it is there reads `/status`."""

    def __init__(self, residence: Residence) -> None:
        self._residence = residence

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the model's state right afterwards."""
        seconds = keep_alive_of(read_members(req, "keep_alive"))
        self._residence.load()
        if seconds is not None:
            self._residence.keep_alive(seconds)
        resp.media = {"state": self._residence.state().name}


class UnloadResource:
    """`POST /unload`: the model goes now, or once what is asked of it is answered."""

    def __init__(self, residence: Residence) -> None:
        self._residence = residence

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the model's state right afterwards."""
        read_members(req)
        self._residence.unload()
        resp.media = {"state": self._residence.state().name}
