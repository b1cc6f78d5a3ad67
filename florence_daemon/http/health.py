"""Health and status: is the process alive, does it take work, what is it doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon


class LiveResource:
    """`GET /health/live`: 200 as long as the process answers."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer."""
        resp.media = {"status": "ok"}


class ReadyResource:
    """`GET /health/ready`: 200 while new work is taken, 503 once the daemon is stopping."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._is_ready = is_ready

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer."""
        ready = self._is_ready()
        resp.status = falcon.HTTP_200 if ready else falcon.HTTP_503
        resp.media = {"status": "ok" if ready else "stopping"}


class StatusResource:
    """`GET /status`: model, queue, folders and failures in one object."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer."""
        resp.media = self._status()
