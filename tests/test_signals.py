"""Stopping on a signal, also when it comes at the worst moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import wait_for

WAIT = """
import sys
from florence_daemon.signals import StopSignal
signals = StopSignal()
print("ready", flush=True)
signals.wait()
try:
    print("stopping", flush=True)
    while "--again" in sys.argv:
        signals._reader.recv(64)
except KeyboardInterrupt:
    print("at once", flush=True)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WAIT, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_signal_around_the_beginning_of_the_wait_is_not_lost() -> None:
    for delay_us in range(0, 600, 30):
        process = start()
        time.sleep(delay_us / 1e6)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == "stopping\n", f"after {delay_us} µs"


def test_second_signal_interrupts() -> None:
    process = start("--again")
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "at once\n"


HANG_UP = """
from florence_daemon.signals import StopSignal
signals = StopSignal(hears_hang_up=True)
print("ready", flush=True)
signals.wait(lambda: print("read anew", flush=True))
print("stopping", flush=True)
"""


def test_hang_up_is_heard_by_who_wants_to_and_ends_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", HANG_UP], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "read anew\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "stopping\n"


def test_terminal_that_is_closed_stops_it_in_order(tmp_path: Path) -> None:
    terminal, shown = os.openpty()
    told = tmp_path / "told"
    with told.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", HANG_UP], stdout=file, stderr=shown, start_new_session=True)
    wait_for(lambda: told.read_text() == "ready\n")
    os.close(shown)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert told.read_text() == "ready\nstopping\n"
