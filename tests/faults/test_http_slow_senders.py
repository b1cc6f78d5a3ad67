"""Clients that send slowly, or nothing: everybody else is answered as if they were not there."""

from __future__ import annotations

import json
import select
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import jpeg
from benchmarks.faults.process import DaemonProcess, wait_for
from tests.conftest import Figure

HEADS = {
    "nothing": b"",
    "half a line": b"GET /mod",
    "half a head": b"POST /process_image HTTP/1.1\r\nHost: localhost\r\nX-Slow",
    "half a body": b"POST /process_image HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    b"Content-Length: 1000000\r\n\r\nhalf",
    "half a chunk": b"POST /process_image HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nffff\r\nhalf",
}


@contextmanager
def serving(home: Path, fake: FakeSettings | None = None, **server: object) -> Iterator[DaemonProcess]:
    config = json.dumps({"model": {"name": "demo"}, "server": server})
    daemon = DaemonProcess(home, config, fake=fake or FakeSettings())
    try:
        yield daemon
    finally:
        daemon.kill()


def address(daemon: DaemonProcess) -> tuple[str, int]:
    return "127.0.0.1", int(daemon.url.rpartition(":")[2])


def ask(daemon: DaemonProcess, picture: bytes, timeout_s: float = 60) -> int:
    """Send a picture; return the status."""
    url = daemon.url + "/process_image?prompt=CAPTION"
    request = urllib.request.Request(url, picture, {"Content-Type": "image/jpeg"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.parametrize("held", HEADS)
def test_hundred_and_twenty_half_open_connections_hold_nobody_up(tmp_path: Path, held: str, figure: Figure) -> None:
    with serving(tmp_path, receive_timeout_s=600) as daemon:
        assert ask(daemon, jpeg(1)) == 200

        def answer_beside_them() -> float:
            """Seconds until all was answered; 0 when some had been cut off by then, which shows nothing."""
            with ExitStack() as slow:
                clients = hold(slow, daemon, HEADS[held], 120)
                began_s = time.monotonic()
                for path in ("/health/live", "/health/ready", "/status"):
                    assert daemon.get(path)
                assert ask(daemon, jpeg(2)) == 200
                took_s = time.monotonic() - began_s
                return took_s if are_open(clients) else 0.0

        took_s = wait_for(answer_beside_them, 120, "answers while all of them are held open")
        assert took_s < 5
        figure(f"120 connections that sent {held}: health, status and a caption in {took_s:.2f} s")


def hold(slow: ExitStack, daemon: DaemonProcess, sent: bytes, count: int) -> list[socket.socket]:
    """Connections that send this and no more, until the stack is closed."""
    clients = []
    for _ in range(count):
        clients.append(slow.enter_context(socket.create_connection(address(daemon), 60)))
        clients[-1].sendall(sent)
    return clients


def are_open(clients: list[socket.socket]) -> bool:
    """Whether none of them was told anything, not even that it is closed."""
    looking = select.poll()
    for client in clients:
        looking.register(client, select.POLLIN)
    return not looking.poll(0)


def test_more_connections_than_there_are_places_for_shut_nobody_out(tmp_path: Path, figure: Figure) -> None:
    with serving(tmp_path, max_queued=4, receive_timeout_s=600) as daemon, ExitStack() as slow:
        clients = hold(slow, daemon, HEADS["half a body"], 600)
        began_s = time.monotonic()
        assert daemon.get("/health/live") == {"status": "ok"}
        assert ask(daemon, jpeg(1)) == 200
        took_s = time.monotonic() - began_s
        assert took_s < 5
        assert are_open(clients[-200:]), "those that came last keep their places"
        wait_for(lambda: daemon.descriptors() < 300, 60, "the descriptors of the others to be free")
        figure(f"600 half-open connections: health and a caption in {took_s:.2f} s, {daemon.descriptors()} descriptors")


def test_slow_senders_are_cut_off_and_their_descriptors_come_back(tmp_path: Path, figure: Figure) -> None:
    with serving(tmp_path, receive_timeout_s=1) as daemon, ExitStack() as slow:
        before = daemon.descriptors()
        clients = [slow.enter_context(socket.create_connection(address(daemon), 60)) for _ in range(120)]
        for number, client in enumerate(clients):
            client.sendall(HEADS["half a body" if number % 2 else "half a head"])
        began_s = time.monotonic()
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 408"} | {b"HTTP/1.0 408"}
        cut_off_s = time.monotonic() - began_s
        slow.close()
        wait_for(lambda: daemon.descriptors() <= before + 2, 60, "the descriptors to be free")
        assert "Traceback" not in daemon.text()
        figure(f"120 slow senders were told 408 within {cut_off_s:.1f} s of a limit of 1 s; no descriptor stayed")
