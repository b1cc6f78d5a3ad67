"""Stopping on a signal, also when it comes at the worst moment."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

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
