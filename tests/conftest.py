"""What several tests need: a stand-in for the engine, and the real command as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from florence_daemon.engine.protocol import Answer, Ask, Done, Stages

Figure = Callable[[str], None]


class FakeEngine:
    """Answers at once, or when told to; notes what it was asked."""

    in_flight = 4

    def __init__(self) -> None:
        self.asked: list[tuple[str | bytes, tuple[Ask, ...], bool]] = []
        self.waiting: list[Future[Done]] = []
        self.holds_answers = False
        self.error: Exception | None = None
        self.content: bytes | None = None  # what it says it read
        self.answer: Callable[[Ask], Answer] = answer_to
        self.on_submit: Callable[[], None] = lambda: None

    def submit(
        self,
        picture: str | bytes,
        asks: tuple[Ask, ...],
        *,
        urgent: bool = False,
        on_begun: Callable[[], None] | None = None,
    ) -> Future[Done]:
        self.asked.append((picture, asks, urgent))
        if on_begun is not None:
            on_begun()
        self.on_submit()
        if isinstance(self.error, Exception):
            raise self.error
        future: Future[Done] = Future()
        if self.holds_answers:
            self.waiting.append(future)
        else:
            future.set_result(Done(1, tuple(map(self.answer, asks)), (10, 10), Stages(), self.content))
        return future


class AtOnce(Executor):
    """A pool without threads: what is submitted has ended when `submit` returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def answer_to(ask: Ask) -> Answer:
    """What the stand-in says; with its brackets, a prompt's name would be no word."""
    return Answer(ask.prompt, f"answer to {ask.prompt.strip('<>')}", tokens=7, prompt_tokens=582)


def done(asks: tuple[Ask, ...], content: bytes | None = None) -> Done:
    return Done(1, tuple(map(answer_to, asks)), (10, 10), Stages(), content)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Say what was measured: benchmarks.soak puts it into docs/reliability.md."""
    return lambda text: record_property("figure", text)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0, what: str = "") -> Any:
    """Wait until `condition` gives something true, and give that back."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")


class RunningDaemon:
    """The real command in a process of its own."""

    def __init__(self, directory: Path, *arguments: str, config: str | None = None) -> None:
        self.log = directory / "daemon.log"
        if config is not None:
            (directory / "florence-daemon.yaml").write_text(config)
            arguments = ("--config", str(directory / "florence-daemon.yaml"), *arguments)
        else:
            arguments = ("--model", "demo", *arguments)
        self._file = self.log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "florence_daemon", "run", "--port", "0", *arguments],
            stderr=self._file,
            stdout=self._file,
            env=clean_environment(directory),
        )
        self.url = ""
        try:
            wait_for(self._has_begun, 180, "the daemon to answer")
        except AssertionError as error:
            self.stop(signal.SIGKILL)
            raise AssertionError(f"{error}\n{self.text()[-2000:]}") from None

    def _has_begun(self) -> bool:
        """Whether it said where it answers, in a line that is whole by now."""
        found = re.search(r'answers at (http://[^\s"]+)[\s"]', self.text())
        if found is not None:
            self.url = found[1]
        elif self.process.poll() is not None:
            raise AssertionError(f"the daemon ended at once: {self.process.poll()}")
        return found is not None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.load(response)

    def engine_pid(self) -> int | None:
        pid = self.get("/status")["model"]["pid"]
        assert pid is None or isinstance(pid, int)
        return pid

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 120) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self._file.close()


def clean_environment(home: Path) -> dict[str, str]:
    """This environment without settings of the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLORENCE_", "VISION_"))}
    return kept | {
        "XDG_CONFIG_HOME": str(home / "no-config"),
        "XDG_STATE_HOME": str(home / "state"),
        "HF_HUB_OFFLINE": "1",
        "FLORENCE_DAEMON_MODEL__ENGINE": "torch",  # OpenVINO would compile the model for each of them
    }


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., RunningDaemon]]:
    running: list[RunningDaemon] = []

    def start(*arguments: str, config: str | None = None) -> RunningDaemon:
        home = tmp_path / f"daemon-{len(running)}"
        home.mkdir()
        running.append(RunningDaemon(home, *arguments, config=config))
        return running[-1]

    yield start
    for daemon in running:
        daemon.stop(signal.SIGKILL)


def run_command(*arguments: str, home: Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `florence-daemon ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "florence_daemon", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=clean_environment(home),
        cwd=home,
        check=False,
    )
