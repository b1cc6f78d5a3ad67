"""Health and status: is the process alive, does it take work, what is it doing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import falcon


@dataclass(frozen=True)
class Readiness:
    """How the daemon is doing. state: ok, degraded (it works, though not everywhere), failed or stopping."""

    state: str
    reasons: tuple[str, ...] = ()

    @property
    def takes_work(self) -> bool:
        """Tell whether a load balancer should send requests here."""
        return self.state in ("ok", "degraded")


class LiveResource:
    """`GET /health/live`: 200 as long as the process answers."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer."""
        resp.media = {"status": "ok"}

    on_head = on_get


class PingResource:
    """`GET /ping`: `pong`, as Immich's machine learning answers."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer."""
        resp.content_type = falcon.MEDIA_TEXT
        resp.text = "pong"

    on_head = on_get


class ReadyResource:
    """`GET /health/ready`: 200 while new work is taken, 503 while the model cannot be had, and once it is stopping."""

    def __init__(self, readiness: Callable[[], Readiness]) -> None:
        self._readiness = readiness

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the state and the reasons for it."""
        now = self._readiness()
        resp.status = falcon.HTTP_200 if now.takes_work else falcon.HTTP_503
        resp.media = {"status": now.state, "reasons": list(now.reasons)}

    on_head = on_get


class StatusResource:
    """`GET /status`: model, queue, folders and failures in one object."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer."""
        resp.media = self._status()

    on_head = on_get
