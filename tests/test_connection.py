"""What a server sends that is wrong, hostile or endless does not keep whoever asks it, nor reach further than that."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest

from florence_daemon import connection as room
from florence_daemon.connection import Connection, Response, TimedOut, Unreachable, error_text, pause_s
from florence_daemon.errors import ServerError
from florence_daemon.peer import Peer

Say = Callable[[socket.socket], None]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class Wrong:
    """A server that takes a request and then does what the test says. heard: what it was sent."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard: list[bytes] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            self.heard.append(client.recv(65536))
            self._say(client)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def wrong() -> Iterator[Callable[[Say], Wrong]]:
    opened: list[Wrong] = []

    def start(say: Say) -> Wrong:
        opened.append(Wrong(say))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


def drip(client: socket.socket, beginning: bytes, piece: bytes) -> None:
    """Never be silent for long, and never come to an end."""
    client.sendall(beginning)
    while True:
        client.sendall(piece)
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (HEAD + b"X: ", b"x"),
        (HEAD + b"Content-Length: 9000\r\n\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["continues", "headers", "body", "chunks"],
)
def test_answer_that_comes_drop_by_drop_is_given_up(
    wrong: Callable[[Say], Wrong], monkeypatch: pytest.MonkeyPatch, beginning: bytes, piece: bytes
) -> None:
    monkeypatch.setattr(room, "CONNECT_S", 1.0)
    server = wrong(lambda client: drip(client, beginning, piece))
    with closing(Connection(server.url)) as connection, pytest.raises(TimedOut):
        connection.send("GET", "/ask", read_s=1.0)


def test_server_that_says_nothing_has_timed_out_and_one_that_is_gone_has_not(
    wrong: Callable[[Say], Wrong],
) -> None:
    server = wrong(lambda client: time.sleep(60))
    with closing(Connection(server.url)) as connection, pytest.raises(TimedOut):
        connection.send("GET", "/ask", read_s=0.2)
    server = wrong(lambda client: None)
    with closing(Connection(server.url)) as connection, pytest.raises(Unreachable) as caught:
        connection.send("GET", "/ask")
    assert type(caught.value) is Unreachable


def test_endless_answer_is_not_taken(wrong: Callable[[Say], Wrong], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_ANSWER_BYTES", 2**20)

    def pour(client: socket.socket) -> None:
        client.sendall(HEAD + b"\r\n")
        while True:
            client.sendall(bytes(2**16))

    with closing(Connection(wrong(pour).url)) as connection, pytest.raises(ServerError, match="larger than"):
        connection.send("GET", "/ask")


def test_packed_answer_is_never_unpacked(wrong: Callable[[Say], Wrong]) -> None:
    packed = gzip.compress(bytes(2**24))
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    server = wrong(lambda client: client.sendall(head + packed))
    with closing(Connection(server.url)) as connection:
        assert connection.send("GET", "/ask").content == packed
    assert b"accept-encoding: identity" in server.heard[0].lower()


def test_token_is_not_taken_elsewhere(wrong: Callable[[Say], Wrong]) -> None:
    other = wrong(lambda client: client.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}"))
    place = f"{other.url}/ask".encode()
    head = b"HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\nLocation: " + place + b"\r\n\r\n"
    server = wrong(lambda client: client.sendall(head))
    with closing(Peer(server.url, "a-horse")) as peer, pytest.raises(ServerError) as caught:
        peer.offer()
    assert f"sends to {other.url}/ask, and is not followed there" in str(caught.value)
    assert b"a-horse" in server.heard[0]
    assert other.heard == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"detail": "a \\u001b[2J \\ud800 text"}', r"a \x1b[2J \ud800 text"),
        (b'{"detail": ["a", "list"]}', r"{"),
        (b"[" * 100_000, "[" * 200),
        (b"<html>\0\xff", "<html>\\x00\ufffd"),
        (b'{"detail": "' + b"x" * 2**22 + b'"}', '{"detail": "' + "x" * 188),
        (b"", "Service Unavailable"),
    ],
    ids=range(6),
)
def test_what_is_shown_of_a_refusal_is_short_and_fit_for_a_terminal(content: bytes, told: str) -> None:
    assert error_text(Response(503, content=content)).startswith(told)
    assert error_text(Response(503, content=content)).isprintable()


@pytest.mark.parametrize(
    ("wanted", "seconds"),
    [("7", 7), ("0", 1), ("9" * 500, 30), ("\u00b2", None), ("-1", None), ("soon", None), ("", None)],
)
def test_pause_that_a_server_wants_is_within_bounds(wanted: str, seconds: float | None) -> None:
    assert pause_s(Response(503, headers={"Retry-After": wanted.encode()})) == seconds
    assert pause_s(Response(500, headers={"Retry-After": wanted.encode()})) is None
