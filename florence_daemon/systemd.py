"""How systemd is spoken to: the system's service manager, or one person's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from florence_daemon.errors import ServiceError, UsageError
from florence_daemon.service_unit import UNIT

# There while systemd runs the machine.
BOOTED = Path("/run/systemd/system")

# What a download may need of the environment of whoever asks for it.
_PASSED = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "HF_ENDPOINT", "HF_TOKEN")


@dataclass(frozen=True)
class Scope:
    """The system's services, or one person's: where their units are, and how their service manager is asked."""

    is_system: bool

    @property
    def unit(self) -> Path:
        """The unit."""
        return self._units() / UNIT

    @property
    def gpu(self) -> Path:
        """The drop-in for a GPU."""
        return self._units() / f"{UNIT}.d" / "gpu.conf"

    def _units(self) -> Path:
        if self.is_system:
            return Path("/etc/systemd/system")
        return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "systemd" / "user"

    def manage(self, *arguments: str) -> None:
        """Run systemctl. Raises: ServiceError with what it said."""
        done = self.ask("systemctl", *arguments)
        if done.returncode:
            raise ServiceError(
                f"systemctl {' '.join(arguments)}: {done.stderr.strip() or f'exit code {done.returncode}'}"
            )

    def restart(self) -> None:
        """Start the service, or start it anew, and wait until it is ready. Raises: ServiceError with its last words."""
        try:
            self.manage("restart", UNIT)
        except ServiceError as error:
            said = self.ask("journalctl", "--unit", UNIT, "--lines", "12", "--output", "cat", "--no-pager").stdout
            raise ServiceError(f"the service did not start: {error}\nIts last words:\n{said.rstrip()}") from None

    def run(
        self, properties: Sequence[str], command: Sequence[str], *, shows: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with these properties of a service, to its end. shows: what it says goes to the terminal."""
        options = ["--quiet", "--wait", "--pipe", "--collect", *(f"--property={each}" for each in properties)]
        options += [f"--setenv={name}" for name in _PASSED if name in os.environ]
        return self.ask("systemd-run", *options, "--", *command, shows=shows)

    def ask(self, program: str, *arguments: str, shows: bool = False) -> subprocess.CompletedProcess[str]:
        """Run one of systemd's programs, in this scope. Raises: ServiceError, it is not there."""
        found = shutil.which(program)
        if found is None:
            raise ServiceError(f"{program} is not on this machine: install the rest of systemd")
        scope = [] if self.is_system else ["--user"]
        return subprocess.run([found, *scope, *arguments], capture_output=not shows, text=True, check=False)


def choose_scope(is_system: bool | None, euid: int) -> Scope:
    """What was asked for, else the system for root and a person's own for everybody else."""
    return Scope(euid == 0 if is_system is None else is_system)


def refuse_if_impossible(scope: Scope, platform: str, euid: int, *, is_booted: bool) -> None:
    """Say why no service can be installed in this scope, if so. Raises: UsageError."""
    if platform == "darwin":
        raise UsageError("macOS has no systemd: let launchd run `florence-daemon run --config FILE`, with KeepAlive")
    if not is_booted:
        raise UsageError(
            f"systemd does not run this machine (there is no {BOOTED}): let what does run "
            "`florence-daemon run --config FILE`, and stop it with SIGTERM"
        )
    if scope.is_system and euid != 0:
        raise UsageError("--system needs root: put sudo before it, or leave --system out for a service of your own")


def refuse_if_silent(scope: Scope, euid: int) -> None:
    """Say that a person's service manager does not answer, if so. Raises: UsageError."""
    asked = scope.ask("systemctl", "show-environment")
    if asked.returncode:
        raise UsageError(
            f"your service manager does not answer ({asked.stderr.strip()}): log in as yourself, not by su or sudo; or "
            f"let it run without a login, sudo loginctl enable-linger $USER; export XDG_RUNTIME_DIR=/run/user/{euid}"
        )
