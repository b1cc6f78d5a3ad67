"""Clients that hang up before their turn, and more of them than there are places."""

from __future__ import annotations

import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import jpeg
from benchmarks.faults.process import wait_for
from tests.conftest import Figure
from tests.faults.test_http_slow_senders import address, ask, serving

HEAD = (
    "POST /process_image?prompt=CAPTION HTTP/1.1\r\nHost: localhost\r\n"
    "Content-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
)


def test_clients_that_hang_up_before_their_turn_cost_no_inference(tmp_path: Path, figure: Figure) -> None:
    gate = tmp_path / "gate"
    with serving(tmp_path / "home", FakeSettings(gate=str(gate), in_flight=1)) as daemon, ThreadPoolExecutor() as pool:
        assert ask(daemon, jpeg(98)) == 200  # from then on it is known how many keep the engine busy
        gate.touch()
        first = pool.submit(ask, daemon, jpeg(0))
        wait_for(lambda: daemon.status()["queue"]["running"] == 1, 60, "the first to run")
        clients = []
        for number in range(20):
            client = socket.create_connection(address(daemon), 60)
            picture = jpeg(1 + number)
            client.sendall(HEAD.format(len(picture)).encode() + picture)
            clients.append(client)
        wait_for(lambda: daemon.status()["queue"]["http"] == 20, 60, "20 to wait")
        for client in clients:
            client.close()
        wait_for(lambda: daemon.status()["queue"]["http"] == 0, 60, "those who hung up to leave the queue")
        gate.unlink()
        assert first.result(60) == 200
        assert ask(daemon, jpeg(99)) == 200
        assert len(daemon.inferred()) == 3
        assert "Traceback" not in daemon.text()
        figure("20 clients hung up while they waited: 0 inferences for them")


def test_flood_gets_answers_or_503_and_health_answers_meanwhile(tmp_path: Path, figure: Figure) -> None:
    with serving(tmp_path, FakeSettings(slow_s=0.05, in_flight=2), max_queued=8) as daemon:
        with ThreadPoolExecutor(64) as pool:
            asked = [pool.submit(ask, daemon, jpeg(number)) for number in range(300)]
            health = [daemon.get("/health/live", timeout_s=60)["status"] for _ in range(20)]
            statuses = Counter(each.result(60) for each in asked)
        assert health == ["ok"] * 20
        assert set(statuses) == {200, 503}
        assert statuses[200] == len(daemon.inferred())
        assert "Traceback" not in daemon.text()
        told = f"{statuses[200]} answered, {statuses[503]} told 503, no other error"
        figure(f"300 requests of 64 clients to 8 places: {told}")
