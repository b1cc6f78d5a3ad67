"""Serve the application with Waitress on a thread of its own."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from florence_daemon.config import ServerConfig
from florence_daemon.errors import ConfigError
from florence_daemon.http.channel import Channel, Limits
from florence_daemon.http.guards import Guards, Head, Refusal
from florence_daemon.http.places import Places

# Threads beyond those that wait for the model, so that health and status always answer: the page may hold as many as
# look into folders, and as many as wait for thumbnails, where a share hangs.
SPARE_THREADS = 12
# Connections beyond the requests that may wait or run. When one more comes, that which has been waited for longest is
# closed, so slow or silent clients can never shut others out. (Each is a descriptor, and 1,024 is a usual limit.)
SPARE_CONNECTIONS = 224
MAX_HEAD_BYTES = 32768
# How long answers that are ready get to reach their clients when the server stops.
FLUSH_S = 3.0


class _Server(TcpWSGIServer):
    """Waitress's server on a socket of ours, which holds the number of connections and their times."""

    def __init__(self, app: Any, listener: socket.socket, limits: Limits, max_connections: int, adj: Any) -> None:
        dispatcher = ThreadedTaskDispatcher()
        dispatcher.set_thread_count(adj.threads)
        sockinfo = (listener.family, listener.type, listener.proto, listener.getsockname())
        self._max_connections = max_connections
        self.listener_closed = threading.Event()
        super().__init__(app, _sock=listener, dispatcher=dispatcher, adj=adj, sockinfo=sockinfo, bind_socket=False)
        self.channel_class = partial(Channel, limits=limits)

    def close_listener(self) -> None:
        """Give the port back; on the thread that serves it."""
        self.del_channel()
        self.socket.close()
        self.listener_closed.set()

    def maintenance(self, now: float) -> None:
        """Called every second."""
        for channel in list(self.active_channels.values()):
            channel.expire()

    def handle_accept(self) -> None:
        """Take a connection, and close another when there are too many."""
        super().handle_accept()
        channels = [channel for channel in self.active_channels.values() if not channel.will_close]
        if len(channels) > self._max_connections:
            waited_for = [channel for channel in channels if channel.waiting_since_s is not None]
            min(waited_for or channels[-1:], key=lambda channel: channel.waiting_since_s or 0.0).will_close = True


class HttpServer:
    """A listening server. `address` is its URL; requests are answered from `start` to `stop`."""

    def __init__(self, app: Any, config: ServerConfig, places: Places) -> None:
        """Bind the port. places: those that the application takes. Raises: ConfigError when that cannot be done."""
        # Waitress binds and warns in its own words; binding first gives an error that says what to do.
        listener = _listen(config.host, config.port)
        self._guards = Guards(config)

        def judge(head: Head) -> Refusal | None:
            return self._guards.refusal(head) or places.refusal(head)

        self._server = _Server(
            app,
            listener,
            Limits(judge, config.receive_timeout_s, config.max_body_mb, time.monotonic),
            config.max_queued + SPARE_CONNECTIONS,
            Adjustments(
                sockets=[listener],
                threads=config.max_queued + SPARE_THREADS,
                connection_limit=sys.maxsize,  # ours closes another one instead
                max_request_body_size=int(config.max_body_mb * 1024 * 1024) + 1,
                max_request_header_size=MAX_HEAD_BYTES,
                channel_request_lookahead=1,  # reads on while a request is answered, so a hang-up is seen
                cleanup_interval=1,
                asyncore_use_poll=True,  # select() knows no descriptor beyond 1,023
                log_socket_errors=False,  # a client that goes away is no error
                ident="florence-daemon",
                clear_untrusted_proxy_headers=True,
            ),
        )
        host, port = listener.getsockname()[:2]
        self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def renew_guards(self, config: ServerConfig) -> None:
        """Let in those whom this configuration lets in, from the next request on; where it listens stays."""
        self._guards = Guards(config)

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
        self.call_soon(self._server.close_listener)
        self._server.listener_closed.wait(timeout=1)

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
