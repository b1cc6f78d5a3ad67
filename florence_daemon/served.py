"""The model that counts: this daemon's own, or what the servers of `model.server` say they answer with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

import attrs

from florence_daemon.config import ModelConfig, ServerConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.engine.member import EngineState
from florence_daemon.engine.protocol import Loaded, Served
from florence_daemon.errors import PeerError
from florence_daemon.exchange import Offer
from florence_daemon.folders.records import Making, making_of, prompt_of, shape_of

# A server that was let in so long ago, and is not in use, is gone again; before that it may not have begun.
JUST_S = 2.0


class Asked(Protocol):
    """What is told of an engine."""

    @property
    def in_flight(self) -> int:
        """How many requests at once keep it busy."""

    def state(self) -> EngineState:
        """How it is doing."""


class Models:
    """Remembers what the servers said, and lets only those answer that say the same. Threads share it.

    A text must not depend on who was free. So the first server that answers decides, and another one may differ only
    once no server is in use any more that said otherwise.
    """

    def __init__(self, model: ModelConfig, on_change: Callable[[], None] = lambda: None) -> None:
        """on_change: told when the servers say something new, in whatever thread; it must not wait."""
        self._lock = threading.Lock()
        self._model = model
        self._served: Served | None = None
        self._in_use: Callable[[], set[str]] = set
        self._admitted_s: dict[str, float] = {}
        self._on_change = on_change

    def watch(self, in_use: Callable[[], set[str]]) -> None:
        """in_use: tells which servers are in use, by their addresses."""
        self._in_use = in_use

    def renew(self, model: ModelConfig) -> None:
        """Go by this configuration from now on."""
        with self._lock:
            self._model = model

    def admit(self, loaded: Loaded) -> str | None:
        """Why what this server answers with may not be used beside the others; None when it may."""
        if loaded.served is None:
            return None
        in_use = self._in_use()
        now_s = time.monotonic()
        with self._lock:
            others = in_use | {place for place, then_s in self._admitted_s.items() if now_s - then_s < JUST_S}
            others -= {loaded.device}
            before = self._served
            if before is not None and before != loaded.served and others:
                return f"{loaded.device}: {_difference(loaded.served, before)}, unlike {', '.join(sorted(others))}"
            self._served = loaded.served
            self._admitted_s[loaded.device] = now_s
        if before != loaded.served:
            self._on_change()
        return None

    @property
    def model(self) -> ModelConfig | None:
        """The settings that decide a text; None while no server has said what it answers with."""
        with self._lock:
            if not self._model.server:
                return self._model
            return None if self._served is None else attrs.evolve(self._model, **asdict(self._served))

    @property
    def name(self) -> str:
        """The model's name, for clients."""
        model = self.model
        return f"the model of {', '.join(self._model.server)}" if model is None else model.name

    def making_of(self, output: OutputConfig) -> Making:
        """How this output is made now; by a model without a name while no server has answered."""
        model = self.model
        return Making("", prompt_of(output), shape_of(output)) if model is None else making_of(model, output)


def offer_of(model: ModelConfig, engine: Asked, server: ServerConfig) -> Offer:
    """What other daemons may ask of the one of this configuration. Raises: PeerError."""
    if model.server:
        names = ", ".join(model.server)
        raise PeerError(f"this daemon has no model of its own; name what it asks itself in model.server: {names}")
    state = engine.state()
    # Other clients find places too: those who backfill leave half of them to people.
    at_once = max(1, min(engine.in_flight, server.max_queued // 2))
    served = Served(model.name, model.revision, model.precision, model.image_size, model.fast_decode)
    error = state.error if state.name == "failed" else None
    return Offer(served, at_once, state.side_px, int(server.max_body_mb * 2**20), error)


def _difference(one: Served, other: Served) -> str:
    """`its model is some/model` or `its model.precision is int8`."""
    name, value = next((name, value) for name, value in asdict(one).items() if value != getattr(other, name))
    return f"its model.{name} is {value!r}, and must be {getattr(other, name)!r}"
