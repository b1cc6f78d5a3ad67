"""What the service manager is told, over a real socket, and that it is told nothing when a part hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from florence_daemon.liveness import READY_S, Keeper, Liveness
from florence_daemon.notify import ServiceManager
from tests.conftest import clean_environment, wait_for

WEDGED_WORKER = """
import os, sys, time
from florence_daemon import cli, status
from florence_daemon.worker import Worker
status.SILENT_S = 6.0
step = Worker.run_once
def run_once(worker, timeout_s):
    while os.path.exists({switch!r}):
        time.sleep(0.05)
    return step(worker, timeout_s)
Worker.run_once = run_once
sys.argv = ["florence-daemon", "run", "--model", "demo", "--port", "0"]
cli.main()
"""


class Listener:
    """A service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)

    def read(self) -> list[str]:
        """Everything that came and was not read."""
        found: list[str] = []
        self.socket.settimeout(0.0)
        try:
            while True:
                found.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return found

    def wait_for(self, message: str, timeout_s: float) -> bool:
        """Whether this message comes in time; those before it are thrown away."""
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            self.socket.settimeout(left_s)
            try:
                if self.socket.recv(4096).decode() == message:
                    return True
            except TimeoutError:
                break
        return False


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"\0florence-test-{os.getpid()}"


@pytest.fixture
def listener(address: str) -> Iterator[Listener]:
    listener = Listener(address)
    yield listener
    listener.socket.close()


@pytest.fixture
def environ(address: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": address.replace("\0", "@")}


class Setup:
    """A keeper of a daemon with two parts, and a clock that the test sets."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.now_s = 0.0
        self.asked = 0
        self.line = "model unloaded"
        liveness = Liveness(lambda: self.now_s)
        self.worker, self.watcher = liveness.expect("worker"), liveness.expect("watcher")
        manager = ServiceManager(environ | {"WATCHDOG_USEC": "20000000"})
        self.keeper = Keeper(manager, liveness, lambda: self.now_s, ask=self.ask, describe=lambda: self.line)

    def ask(self) -> None:
        self.asked += 1


def test_ready_is_said_once_every_part_has_shown_life(listener: Listener, environ: dict[str, str]) -> None:
    setup = Setup(environ)
    setup.worker()
    setup.keeper.tick()
    assert listener.read() == []
    setup.watcher()
    setup.keeper.tick()
    setup.keeper.tick()
    assert listener.read() == ["READY=1", "WATCHDOG=1", "STATUS=model unloaded", "WATCHDOG=1"]


def test_folder_that_hangs_at_the_start_does_not_hold_up_the_others(
    listener: Listener, environ: dict[str, str]
) -> None:
    setup = Setup(environ)
    setup.worker()
    setup.now_s = READY_S
    setup.keeper.tick()
    assert listener.read() == ["READY=1", "STATUS=worker, watcher: no sign of life"]


def test_part_that_shows_no_life_stops_the_pings_until_it_does(
    listener: Listener, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(environ)
    setup.worker()
    setup.watcher()
    assert setup.keeper.tick() <= 5
    listener.read()
    setup.now_s = 20.5
    setup.watcher()
    setup.keeper.tick()
    setup.keeper.tick()
    assert listener.read() == ["STATUS=worker: no sign of life"]
    assert caplog.text.count("worker: no sign of life for 20 s") == 1
    setup.worker()
    setup.keeper.tick()
    assert listener.read() == ["WATCHDOG=1", "STATUS=model unloaded"]


def test_stopping_asks_for_the_time_that_it_takes(listener: Listener, environ: dict[str, str]) -> None:
    ServiceManager(environ).stopping(60)
    assert listener.read() == ["STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000"]


def test_without_a_service_manager_nobody_is_told_and_nothing_fails(tmp_path: Path) -> None:
    assert not ServiceManager({}).is_listening
    gone = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nowhere")})
    gone.ready()
    assert gone.is_listening


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_pings_are_sent_when_they_are_wanted_of_this_process(environ: dict[str, str], watchdog_s: float | None) -> None:
    assert ServiceManager({"NOTIFY_SOCKET": "/nowhere", **environ}).watchdog_s == watchdog_s


def test_daemon_says_ready_and_pings_until_its_worker_hangs(tmp_path: Path) -> None:
    listener, switch = Listener(str(tmp_path / "notify")), tmp_path / "hang"
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "6000000"}
    script = WEDGED_WORKER.format(switch=str(switch))
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=clean_environment(tmp_path) | told, stderr=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stderr is not None
            ready = daemon.stderr.readline().split()[-1] + "/health/ready"
            assert listener.wait_for("READY=1", 60)
            assert listener.wait_for("STATUS=model unloaded, 0 waiting, 0 running, 0 captioned, 0 failed", 60)
            for _ in range(3):
                assert listener.wait_for("WATCHDOG=1", 60)
            switch.touch()
            assert listener.wait_for("STATUS=worker: no sign of life", 60)
            assert not listener.wait_for("WATCHDOG=1", 3)
            answer = httpx.get(ready, timeout=60)
            assert (answer.status_code, answer.json()["reasons"]) == (503, ["worker: no sign of life for 6 s"])
            switch.unlink()
            assert listener.wait_for("WATCHDOG=1", 60)
            wait_for(lambda: httpx.get(ready, timeout=60).status_code == 200)
            daemon.send_signal(signal.SIGTERM)
            assert listener.wait_for("STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000", 60)
            assert daemon.wait(60) == 0
        finally:
            daemon.kill()
            listener.socket.close()
