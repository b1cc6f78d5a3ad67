"""Serve the application with Waitress on a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask

from florence_daemon.config import ServerConfig
from florence_daemon.errors import ConfigError
from florence_daemon.http.app import error_body

log = logging.getLogger(__name__)

# Threads beyond those that wait for the model, so that health and status always answer.
SPARE_THREADS = 4
# How long answers that are ready get to reach their clients when the server stops.
FLUSH_S = 3.0


class _JsonErrorTask(ErrorTask):
    """Waitress's own errors (too large, malformed) in the form of all others."""

    def execute(self) -> None:
        """Write the error."""
        error = self.request.error
        body = error_body(f"{error.reason}: {error.body}")
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    error_task_class = _JsonErrorTask


class HttpServer:
    """A listening server. `address` is its URL; requests are answered from `start` to `stop`."""

    def __init__(self, app: Any, config: ServerConfig) -> None:
        """Bind the port. Raises: ConfigError when that cannot be done."""
        # Waitress binds and warns in its own words; binding first gives an error that says what to do.
        listener = _listen(config.host, config.port)
        self._server = create_server(
            app,
            sockets=[listener],
            threads=config.max_queued + SPARE_THREADS,
            max_request_body_size=int(config.max_body_mb * 1024 * 1024) + 1,
            channel_request_lookahead=1,
            ident="florence-daemon",
            clear_untrusted_proxy_headers=True,
        )
        self._server.channel_class = _Channel
        host, port = listener.getsockname()[:2]
        self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have the thread that serves all connections call `call`, which shows that it does not hang."""
        self._server.trigger.pull_trigger(call)

    def stop(self) -> None:
        """Take no more connections, let finished answers out, and end."""
        self._server.accepting = False
        deadline_s = time.monotonic() + FLUSH_S
        while time.monotonic() < deadline_s and self._is_sending():
            time.sleep(0.02)
        self._server.task_dispatcher.shutdown(cancel_pending=True, timeout=1)
        with contextlib.suppress(OSError):
            self._server.socket.close()

    def _is_sending(self) -> bool:
        channels = list(self._server.active_channels.values())
        return any(channel.total_outbufs_len or channel.requests for channel in channels)


def _listen(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        if os.name != "nt":  # on Windows the option would let two daemons share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {getattr(error, 'strerror', None) or error}; is another "
            "florence-daemon running? Give another place with --host and --port (server.host, server.port)"
        ) from None
    return listener
