"""The real daemon as a process that can be frozen, killed, starved and looked at from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.faults.fake_engine import FakeSettings, Inference, read_log

T = TypeVar("T")
ADDRESS = re.compile(r"answers at (http://\S+?)[\s\"]")


class NotInTime(AssertionError):
    """Something that was waited for did not happen."""


def wait_for(condition: Callable[[], T], timeout_s: float, what: str, every_s: float = 0.02) -> T:
    """Wait until `condition` gives something true, and give that back. Raises: NotInTime."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise NotInTime(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without a person's own settings; what the program keeps goes below `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLORENCE_", "VISION_"))}
    return {
        **kept,
        "XDG_CONFIG_HOME": str(home / "no-config"),
        "XDG_STATE_HOME": str(home / "state"),
        "HF_HUB_OFFLINE": "1",
        "FLORENCE_DAEMON_MODEL__ENGINE": "torch",
        **(more or {}),
    }


def watching(folder: Path, *, settle_s: float = 0.2, rescan_s: float = 300, **settings: object) -> str:
    """A configuration that watches `folder` for captions alone; the other settings are the folder's."""
    folders = {
        "path": str(folder),
        "settle_s": settle_s,
        "rescan_s": rescan_s,
        "outputs": [{"prompt": "CAPTION", "ext": "txt"}],
        **settings,
    }
    return json.dumps({"model": {"name": "demo"}, "folders": [folders]})


class DaemonProcess:
    """`florence-daemon run` over a home directory, which outlives it: start one after another on the same home."""

    def __init__(
        self,
        home: Path,
        config: str,
        *,
        fake: FakeSettings | None = None,
        prefix: Sequence[str] = (),
        more: Mapping[str, str] | None = None,
        start_s: float = 180,
        module: str = "florence_daemon",
    ) -> None:
        """fake: run with the stand-in engine, so set; its log is `home/inferences` unless told otherwise.

        prefix: a command that ends by running what follows it, such as `unshare`. Raises: NotInTime.
        """
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.log = home / "daemon.log"
        self.inferences = home / "inferences"
        (home / "config.yaml").write_text(config)
        variables = dict(more or {})
        if fake is not None:
            variables |= FakeSettings(**{"log": str(self.inferences), **_set(fake)}).as_environment()
            module = "benchmarks.faults.fake_engine"
        began_bytes = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module, "run", "--port", "0", "--config", str(home / "config.yaml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(home, variables),
            )
        self.url = ""
        if start_s > 0:
            self._await_address(began_bytes, start_s)

    def _await_address(self, began_bytes: int, start_s: float) -> None:
        def said() -> re.Match[str] | bool | None:
            ended = self.process.poll() is not None
            return ADDRESS.search(self.text()[began_bytes:]) or ended

        try:
            found = wait_for(said, start_s, "the daemon to answer")
        except NotInTime:
            self.kill()
            raise
        if not isinstance(found, re.Match):
            raise NotInTime(f"the daemon ended at once: {self.text()[-2000:]}")
        self.url = found[1]

    @property
    def pid(self) -> int:
        """The daemon's own process."""
        return self.process.pid

    def text(self) -> str:
        """Its log so far, of all that ran on this home. Latin-1, so that offsets are bytes."""
        return self.log.read_text(encoding="latin-1")

    def get(self, path: str, timeout_s: float = 60) -> Any:
        """The JSON at `path`."""
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as response:
            return json.load(response)

    def status(self) -> dict[str, Any]:
        """`GET /status`."""
        found: dict[str, Any] = self.get("/status")
        return found

    def is_quiet(self) -> bool:
        """Whether no picture of a folder settles, waits or is at the engine."""
        queue = self.status()["queue"]
        return not (queue["settling"] or queue["folder"] or queue["running"])

    def failures(self) -> dict[str, str]:
        """The reasons of what was not captioned, by path."""
        return {each["path"]: each["reason"] for each in self.status()["failures"]}

    def inferred(self, end: str = "done") -> list[Inference]:
        """What the stand-in engine did, over all runs on this home."""
        return [each for each in read_log(self.inferences) if each.end == end]

    def cpu_s(self) -> float:
        """Seconds of processor time that the daemon itself, without its engine, has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        """Resident memory of the daemon itself."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024

    def descriptors(self) -> int:
        """How many files and connections it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def children(self) -> list[int]:
        """The processes that it started and that still live."""
        found: list[int] = []
        for path in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):  # The thread has ended meanwhile.
                found += map(int, path.read_text().split())
        return found

    def freeze(self) -> None:
        """Let it do nothing until `thaw`; the kernel goes on collecting events for it."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_for(lambda: state_of(self.pid) == "T", 60, "the daemon to stand still")

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash or an out-of-memory kill does, its engine too; return when they are gone."""
        children = self.children() if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for child in children:
            _kill(child)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 120) -> int:
        """Stop it in order; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        finally:
            self.kill()

    def __enter__(self) -> DaemonProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _set(fake: FakeSettings) -> dict[str, Any]:
    return {name: value for name, value in vars(fake).items() if value is not None}


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_for(lambda: state_of(pid) in "Z", 60, f"process {pid} to end")


def state_of(pid: int) -> str:
    """The letter that /proc has for what a process does, `T` when stopped; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
