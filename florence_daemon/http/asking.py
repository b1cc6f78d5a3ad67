"""Put what a request asks into the queue, and wait for its answer as long as the client does."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable

import falcon

from florence_daemon.engine.protocol import Ask, Done, Source
from florence_daemon.http.contract import ON_HANG_UP
from florence_daemon.queue import Job, JobQueue, Kind


class Asking:
    """Asks on behalf of requests. Threads share it."""

    def __init__(self, queue: JobQueue, keep_alive: Callable[[float], None], request_timeout_s: float) -> None:
        """keep_alive: told how long the model is to stay without work."""
        self._queue = queue
        self._keep_alive = keep_alive
        self._request_timeout_s = request_timeout_s

    def ask(
        self, req: falcon.Request, kind: Kind, picture: Source, asks: tuple[Ask, ...], keep_alive_s: float | None = None
    ) -> Done:
        """Wait for the answer, however long the model takes to load, up to the configured time-out.

        Raises: FlorenceError as the engine does, QueueFull, Stopping; falcon.HTTPError (499, 504).
        """
        job = Job(kind, picture, asks)
        self._queue.put(job)
        if keep_alive_s is not None:
            self._keep_alive(keep_alive_s)  # behind `put`: an idle model that is asked something must not go first
        req.env[ON_HANG_UP](lambda: self._queue.withdraw(job))
        try:
            return job.future.result(self._request_timeout_s)
        except concurrent.futures.TimeoutError:
            self._queue.withdraw(job)
            raise falcon.HTTPGatewayTimeout(
                description=f"no answer within {self._request_timeout_s:g} s (server.request_timeout_s)"
            ) from None
        except concurrent.futures.CancelledError:
            # Nobody reads this; waitress notices that, and sends nothing.
            raise falcon.HTTPError("499 Client Closed Request", description="the client hung up") from None
