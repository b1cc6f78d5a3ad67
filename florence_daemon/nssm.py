"""Has NSSM run the daemon as a Windows service: installs it, removes it, and holds the one list of its settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from florence_daemon import config_file
from florence_daemon.config import Config
from florence_daemon.errors import ServiceError, UsageError
from florence_daemon.folders.mounts import is_share

NAME = "florence-daemon"
CONFIG_FILE = "florence-daemon.yaml"
NSSM_MISSING = (
    "nssm.exe was not found: `winget install NSSM.NSSM` or `choco install nssm` installs it, or take nssm-2.24-101 or "
    "later from https://nssm.cc and name it with --nssm PATH (-Nssm PATH)"
)
# A stop takes as long as what runs, 60 s at most, and the closing of everything.
STOP_MS = 90_000
# A daemon that ends sooner than this after its start is started again ever later.
THROTTLE_MS = 5_000
RESTART_DELAY_MS = 5_000
LOG_BYTES = 10 * 1024 * 1024
WAIT_S = STOP_MS / 1000 + 10.0


@dataclass(frozen=True)
class WindowsService:
    """A service as it shall be.

    home: the directory for its state, its models and its logs. environment: what somebody added to its variables.
    """

    name: str
    python: Path
    config: Path
    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Everything that the daemon says."""
        return self.home / "logs" / f"{NAME}.log"


def planned(named: Path | None, name: str, environment: Mapping[str, str] | None = None) -> WindowsService:
    """The service that `install` would make. environment: the variables of the one that is there already."""
    home = Path(os.environ.get("PROGRAMDATA") or r"C:\ProgramData") / name
    environment = environment or {}
    if named is None and config_file.ENV_FILE in environment:
        named = Path(environment[config_file.ENV_FILE])
    config = Path(os.path.abspath(named.expanduser())) if named is not None else home / CONFIG_FILE
    return WindowsService(name, Path(sys.executable), config, home, environment)


def settings(service: WindowsService) -> list[tuple[str, ...]]:
    """Every setting that differs from what NSSM would take by itself; the account is yours to choose, so not here."""
    log = str(service.log)
    variables = {
        **service.environment,
        "PYTHONUTF8": "1",
        config_file.ENV_FILE: str(service.config),
        "STATE_DIRECTORY": str(service.home / "state"),
        "HF_HOME": str(service.home / "models"),
    }
    return [
        ("Application", str(service.python)),
        ("AppParameters", "-m florence_daemon run"),
        ("AppDirectory", str(service.home)),
        ("AppEnvironmentExtra", *(f"{name}={value}" for name, value in variables.items())),
        ("DisplayName", "Florence Daemon" if service.name == NAME else f"Florence Daemon ({service.name})"),
        ("Description", "Captions the pictures people drop into folders, with Florence-2."),
        ("Start", "SERVICE_DELAYED_AUTO_START"),
        # Ctrl-C, then this long: NSSM's own 1,500 ms would cut off what runs.
        ("AppStopMethodConsole", str(STOP_MS)),
        ("AppExit", "Default", "Restart"),
        # A wrong configuration is not righted by starting again.
        ("AppExit", "78", "Exit"),
        ("AppThrottle", str(THROTTLE_MS)),
        ("AppRestartDelay", str(RESTART_DELAY_MS)),
        ("AppStdout", log),
        ("AppStderr", log),
        ("AppRotateFiles", "1"),
        ("AppRotateOnline", "1"),
        ("AppRotateBytes", str(LOG_BYTES)),
    ]


def commands(service: WindowsService, *, is_new: bool) -> list[list[str]]:
    """What NSSM is asked, in order, to make the service as it shall be."""
    made = [["install", service.name, str(service.python)]] if is_new else []
    return made + [["set", service.name, *setting] for setting in settings(service)]


def show(named: Path | None, name: str, nssm: Path | None) -> None:
    """Print the commands of `install`, as one would type them."""
    program = str(nssm or "nssm")
    for words in commands(planned(named, name), is_new=True):
        print(subprocess.list2cmdline([program, *words]))


def install(named: Path | None, name: str, nssm: Path | None) -> None:
    """Install the service and start it; where it is installed already, set everything anew and start it again.

    Raises: ConfigError, UsageError (it cannot be done here), ServiceError (NSSM or the daemon refused).
    """
    manager = _manager(nssm)
    was_there = manager.status(name) is not None
    service = planned(named, name, manager.environment(name) if was_there else None)
    if not service.config.is_file():
        raise UsageError(
            f"there is no configuration {service.config}: write one (config\\{CONFIG_FILE} shows every setting), or "
            "name yours with --config FILE"
        )
    config = configuration(service)
    if was_there:
        manager.stop(name)
    for directory in (service.log.parent, service.home / "state", service.home / "models"):
        directory.mkdir(parents=True, exist_ok=True)
    for words in commands(service, is_new=not was_there):
        manager.ask(*words)
    for path in mapped_folders(config):
        print(f"{path}: a service sees no mapped drives; write \\\\server\\share instead", file=sys.stderr)
    manager.start(service)
    print(f"{name}: {'set anew' if was_there else 'installed'} and started; it logs to {service.log}")


def uninstall(name: str, nssm: Path | None) -> None:
    """Stop the service and remove it; its directory stays. Raises: UsageError, ServiceError."""
    manager = _manager(nssm)
    if manager.status(name) is None:
        print(f"{name}: there is no such service, so nothing is removed")
        return
    manager.environment(name)
    manager.stop(name)
    manager.ask("remove", name, "confirm")
    print(f"{name}: removed; {planned(None, name).home} (settings, state, models, logs) stays")


def configuration(service: WindowsService) -> Config:
    """What the service will be told: its own environment counts, such as a token, and not this shell's.

    Raises: ConfigError.
    """
    return config_file.load(service.config, service.environment)


def mapped_folders(config: Config, is_share: Callable[[str], bool] = is_share) -> list[str]:
    """The configured folders on drive letters that stand for network shares: those belong to a person's session."""
    paths = [str(folder.path) for folder in config.folders]
    return [path for path in paths if not path.startswith("\\\\") and is_share(path)]


class Nssm:
    """NSSM, asked through its command line."""

    def __init__(self, program: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._program = program
        self._clock = clock

    def run(self, *words: str) -> tuple[int, str]:
        """Run `nssm WORDS`: its exit code and what it said."""
        try:
            done = subprocess.run(
                [str(self._program), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
        except OSError as error:
            raise ServiceError(f"{self._program}: cannot be run: {error.strerror or error}") from None
        # Into a pipe, NSSM writes UTF-16.
        encoding = "utf-16-le" if b"\0" in done.stdout else "utf-8"
        return done.returncode, done.stdout.decode(encoding, "replace").replace("\r", "").strip()

    def ask(self, *words: str) -> str:
        """Run it and return what it said. Raises: ServiceError when it refuses."""
        code, said = self.run(*words)
        if code:
            # Not what comes after the setting's name: there may be a token in it.
            command = subprocess.list2cmdline([str(self._program), *words[:3]])
            raise ServiceError(f"{command}: {said or f'exit code {code}'}")
        return said

    def status(self, name: str) -> str | None:
        """`SERVICE_RUNNING` and its like, or None when there is no such service."""
        said = self.run("status", name)[1]
        return said if said.startswith("SERVICE_") else None

    def environment(self, name: str) -> dict[str, str]:
        """The variables of a service of ours. Raises: UsageError when the service of this name is something else."""
        lines = self.run("get", name, "AppEnvironmentExtra")[1].splitlines()
        found = dict(line.split("=", 1) for line in lines if "=" in line)
        if config_file.ENV_FILE not in found:
            raise UsageError(f"{name}: this service was not installed by florence-daemon; give another --name")
        return found

    def start(self, service: WindowsService) -> None:
        """Start it and wait until it stays up. Raises: ServiceError."""
        # Its answer is not waited for here: it calls a start that takes long enough a failure.
        self.run("start", service.name)
        if self._wait(service.name, "SERVICE_RUNNING", "SERVICE_STOPPED", "SERVICE_PAUSED") != "SERVICE_RUNNING":
            raise ServiceError(f"{service.name}: was installed and does not stay up; {service.log} says why")

    def stop(self, name: str) -> None:
        """Stop it and wait for its end. Raises: ServiceError."""
        if self.status(name) == "SERVICE_STOPPED":
            return
        said = self.run("stop", name)[1]
        if self._wait(name, "SERVICE_STOPPED") != "SERVICE_STOPPED":
            raise ServiceError(f"{name}: could not be stopped: {said}")

    def _wait(self, name: str, *wanted: str) -> str | None:
        deadline_s = self._clock() + WAIT_S
        while (status := self.status(name)) not in wanted and self._clock() < deadline_s:
            time.sleep(0.25)
        return status


def _manager(nssm: Path | None) -> Nssm:
    """NSSM, once it is known that it may be used. Raises: UsageError."""
    if not is_administrator():
        raise UsageError(
            "only an administrator may change services: open PowerShell with 'Run as administrator' and do it there"
        )
    found = shutil.which(nssm or "nssm")
    if found is None:
        raise UsageError(NSSM_MISSING if nssm is None else f"{nssm}: is not there; {NSSM_MISSING}")
    return Nssm(Path(found))


def is_administrator() -> bool:
    """Whether this process was started with an administrator's rights."""
    if sys.platform != "win32":
        return False
    import ctypes

    return bool(ctypes.windll.shell32.IsUserAnAdmin())
