"""One connection: its requests are judged by their heads, must arrive in time, and end when the client hangs up."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError, TransferEncodingNotImplemented
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import RequestEntityTooLarge, RequestHeaderFieldsTooLarge

from florence_daemon.http.contract import ON_HANG_UP, error_body
from florence_daemon.http.guards import Head, Refusal

# Seconds for a request's head to arrive, from its first byte.
HEAD_S = 10.0
# Seconds that a connection may stay open without a request, and that a client may take no byte of its answer.
IDLE_S = 75.0
# After a refusal, what the client still sends is read and thrown away for this long. To close at once would reset the
# connection, and with it the answer that the client has not read yet.
LINGER_S = 5.0
# Chunks may cost so much beyond what they carry: a body in chunks of one byte would keep the server busy for minutes.
CHUNK_OVERHEAD_BYTES = 65536
TRANSFER_ENCODING = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What a connection is held to.

    judge: says by a request's head why it is refused, or None. receive_timeout_s: for a whole request.
    clock: seconds, monotonic.
    """

    judge: Callable[[Head], Refusal | None]
    receive_timeout_s: float
    max_body_mb: float
    clock: Callable[[], float]


class RequestParser(HTTPRequestParser):
    """Waitress's parser, stricter: what two readers could understand in two ways is refused."""

    path = ""  # waitress logs it, also of requests that have none
    error: Any

    def __init__(self, adj: Any, limits: Limits) -> None:
        super().__init__(adj)
        self._limits = limits
        self._is_judged = False

    def parse_header(self, header_plus: bytes) -> None:
        """Read the head. Raises: ParsingError, where waitress lets other errors through or says 501."""
        try:
            super().parse_header(header_plus)
        except TransferEncodingNotImplemented:
            raise ParsingError("this Transfer-Encoding is not understood, only chunked is") from None
        except ValueError as error:  # An address with half a bracket, a length of five thousand digits.
            raise ParsingError(f"the head cannot be read: {error}") from None
        if self.version not in ("1.0", "1.1"):
            raise ParsingError(f"HTTP/{self.version or '0.9'} is not spoken here, but HTTP/1.1")
        if TRANSFER_ENCODING.search(header_plus) and not (self.chunked and "CONTENT_LENGTH" not in self.headers):
            raise ParsingError("Transfer-Encoding goes with HTTP/1.1, without Content-Length, and says chunked")

    def received(self, data: bytes) -> int:
        """Take bytes; return how many of them belong to this request."""
        consumed: int = super().received(data)
        if self.error is None and self.headers_finished and not self.empty:
            self.error = self._check_chunks() if self._is_judged else self._judge()
        if isinstance(self.error, RequestEntityTooLarge):
            text = f"the request is larger than {self._limits.max_body_mb:g} MB (server.max_body_mb)"
            self.error = Refusal(413, "Content Too Large", text)
        elif isinstance(self.error, RequestHeaderFieldsTooLarge):
            text = f"the request's head is larger than {self.adj.max_request_header_size} bytes"
            self.error = Refusal(431, "Request Header Fields Too Large", text)
        if self.error is not None:
            # Or waitress would still ask the client to go on.
            self.completed, self.expect_continue = True, False
        return consumed

    def _judge(self) -> Refusal | None:
        self._is_judged = True
        return self._limits.judge(Head(self.command, self.path, self.version, self.headers, self.proxy_netloc))

    def _check_chunks(self) -> Refusal | None:
        if not self.chunked:
            return None
        allowed = CHUNK_OVERHEAD_BYTES + 2 * len(self.body_rcv)
        if self.body_bytes_received > allowed or len(self.body_rcv.trailer) > CHUNK_OVERHEAD_BYTES:
            return Refusal(400, "Bad Request", "the chunks are mostly not the body; send larger ones")
        return None


class _JsonErrorTask(ErrorTask):
    """Answers a request that was refused, in the form of all other errors."""

    def execute(self) -> None:
        """Write the error."""
        error = self.request.error
        is_ours = isinstance(error, Refusal)
        text = error.body if is_ours else f"{error.reason}: {error.body}"
        body = error_body(text, getattr(self.request, "path", ""), error.code)
        self.status = f"{error.code} {error.reason}"
        self.response_headers += [("Content-Type", "application/json"), *(error.headers if is_ours else ())]
        self.channel.is_refused = True
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(b"" if getattr(self.request, "command", "") == "HEAD" else body)


class _Task(WSGITask):
    def service(self) -> None:
        """Answer; from then on a hang-up is nobody's business. (Later, the channel may be at its next request.)"""
        try:
            super().service()
        finally:
            self.channel.on_hang_up(None)

    def get_environment(self) -> dict[str, Any]:
        """The WSGI environment, and a way to learn that the client hung up."""
        environ: dict[str, Any] = super().get_environment()
        environ[ON_HANG_UP] = self.channel.on_hang_up
        return environ


class Channel(HTTPChannel):
    """A connection. Waitress's main thread calls everything but `on_hang_up`."""

    request: Any
    will_close: bool
    close_when_flushed: bool
    task_class = _Task
    error_task_class = _JsonErrorTask

    def __init__(self, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any, limits: Limits) -> None:
        self.parser_class = partial(RequestParser, limits=limits)
        self.is_refused = False
        self._limits = limits
        self._quiet_since_s = self._began_s = limits.clock()
        self._unsent_bytes = 0
        self._lingers_until_s: float | None = None
        self._on_hang_up: Callable[[], object] | None = None
        super().__init__(server, sock, addr, adj, map=map)

    @property
    def waiting_since_s(self) -> float | None:
        """Since when the client is waited for; None while it waits for us."""
        if self.requests:
            return None
        return self._quiet_since_s if self.request is None else self._began_s

    def on_hang_up(self, do: Callable[[], object] | None) -> None:
        """Call `do`, from another thread, when the client hangs up before it has its answer; at once if it has."""
        self._on_hang_up = do
        if do is not None and not self.connected:
            do()

    def expire(self) -> None:
        """Close the connection, or refuse the request that is under way, when the client takes too long."""
        now_s = self._limits.clock()
        if self.will_close:
            # Waitress closes once the socket can be written to, which may never be; now it can.
            self._shut(socket.SHUT_RDWR)
        elif self._lingers_until_s is not None:
            self.will_close = now_s >= self._lingers_until_s
        elif self.requests or self.total_outbufs_len != self._unsent_bytes:
            self._quiet_since_s = self._began_s = now_s
            self._unsent_bytes = self.total_outbufs_len
        elif self.request is not None and not self.total_outbufs_len:
            self._expire_request(now_s - self._began_s)
        else:
            self.will_close = now_s - self._quiet_since_s > IDLE_S

    def _expire_request(self, passed_s: float) -> None:
        limit_s = self._limits.receive_timeout_s
        if not self.request.headers_finished:
            limit_s = min(HEAD_S, limit_s)
        if passed_s <= limit_s:
            return
        with self.requests_lock:
            text = f"the request did not arrive whole within {limit_s:g} s (server.receive_timeout_s)"
            self.request.error = Refusal(408, "Request Timeout", text)
            self.requests.append(self.request)
            self.request = None
        self.server.add_task(self)

    def received(self, data: bytes) -> bool:
        """Take what the client sent, noting when a request began."""
        if self._lingers_until_s is not None:
            return False
        before, self._quiet_since_s = self.request, self._limits.clock()
        taken: bool = super().received(data)
        if self.request is not before:
            self._began_s = self._quiet_since_s
        return taken

    def handle_write(self) -> None:
        """Send; once a refusal is out, linger instead of closing."""
        if not (self.is_refused and self.close_when_flushed):
            super().handle_write()
            return
        self._flush_exception(self._flush_some)
        if self.will_close:
            self.handle_close()
        elif not self.total_outbufs_len:
            self.close_when_flushed = False
            self._lingers_until_s = self._limits.clock() + LINGER_S
            self._shut(socket.SHUT_WR)

    def handle_close(self) -> None:
        """Close, and tell whoever works for this client."""
        super().handle_close()
        do = self._on_hang_up
        if do is not None:
            do()

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(how)
