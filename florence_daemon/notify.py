"""Tells the service manager how the daemon is doing: systemd's notification protocol, without its library."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class ServiceManager:
    """Who started the daemon, if it wants to be told: ready, stopping, alive, and a line for `systemctl status`.

    Nothing here raises: a daemon whose service manager does not listen works on.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """environ: systemd sets NOTIFY_SOCKET, and WATCHDOG_USEC for the process WATCHDOG_PID."""
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environ) if self.is_listening else None

    @property
    def is_listening(self) -> bool:
        """Whether there is anybody to tell."""
        return self._address is not None

    def ready(self) -> None:
        """The daemon does its work."""
        self._tell("READY=1")

    def stopping(self, within_s: float) -> None:
        """The daemon stops, and takes up to so long; the service manager is asked for that much patience."""
        self._tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(within_s * 1e6)}")

    def alive(self) -> None:
        """Everything works; due at least every `watchdog_s`, or the service manager ends this process."""
        self._tell("WATCHDOG=1")

    def status(self, line: str) -> None:
        """What `systemctl status` shows."""
        self._tell("STATUS=" + " ".join(line.split()))

    def _tell(self, message: str) -> None:
        if self._address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(1.0)  # a service manager that hangs must not hang the daemon
            sender.sendto(message.encode("utf-8", "backslashreplace"), self._address)


def _address(named: str) -> str | None:
    """A path, or a name in the abstract namespace, which begins with @ here and with a zero byte for the kernel."""
    if not hasattr(socket, "AF_UNIX") or not named.startswith(("/", "@")):
        return None
    return "\0" + named[1:] if named.startswith("@") else named


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """How often the service manager wants to hear that all is well; None when it does not, or not from this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        seconds = int(environ["WATCHDOG_USEC"]) / 1e6
    except (KeyError, ValueError):
        return None
    return seconds if seconds > 0 else None
