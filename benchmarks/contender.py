"""A contender in a process of its own: loaded once, it answers what it is given, and sleeps while others work."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

CAPTION, TAGS = "<MORE_DETAILED_CAPTION>", "<GENERATE_TAGS>"
STOP_S = 20.0
# As our engine sets it: torch's threads sleep while they wait for each other. Spinning, transformers is slowed many
# times over by whatever else runs on the machine, and the comparison would be in our favour.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
T = TypeVar("T")
_MEMORY = re.compile(r"^(VmHWM|VmRSS|RssFile):\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class Order:
    """What a contender is started with.

    engine: `reference` for transformers as people use it, else one of `model.engine`. batch: of a backfill, for ours.
    """

    engine: str
    precision: str
    device: str
    checkpoint: str
    state_dir: str
    new_tokens: int
    batch: int


@dataclass(frozen=True)
class Ready:
    """It has its model, and what it says that it runs."""

    device: str
    precision: str


@dataclass(frozen=True)
class Unable:
    """It cannot do what it was ordered."""

    reason: str


@dataclass(frozen=True)
class Job:
    """Pictures, by their paths, and what is asked about each. is_backfill: they may be answered together."""

    pictures: tuple[str, ...]
    prompts: tuple[str, ...] = (CAPTION,)
    is_backfill: bool = False


@dataclass(frozen=True)
class Answered:
    """Seconds for all pictures of a job, from their files to the answers, and the answers of each.

    vision_s, text_s: how much of it the engine spent in these parts, where it tells.
    """

    took_s: float
    answers: tuple[tuple[str, ...], ...]
    vision_s: float | None = None
    text_s: float | None = None


@dataclass(frozen=True)
class Memory:
    """Megabytes of a process: the most it had at any time, what it has now, and how much of that is mapped files."""

    peak_mb: float
    resident_mb: float
    mapped_mb: float


class UnableError(Exception):
    """A contender cannot take part; the message says why."""


def send(stream: IO[bytes], message: object) -> None:
    """Hand a message to the other end, which is this program too."""
    pickle.dump(message, stream)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Wait for a message. Raises: EOFError when the other end is gone."""
    return pickle.load(stream)


class Contender:
    """The handle of one process. ready_s: from the start of the process until it had its model."""

    def __init__(self, order: Order) -> None:
        began_s = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=WAITING | os.environ,
        )
        self.ready = self._ask(order, Ready)
        self.ready_s = time.perf_counter() - began_s

    def answer(self, pictures: Sequence[Path], *prompts: str, is_backfill: bool = False) -> Answered:
        """Let it work; nobody else does until it has answered.

        Raises:
            UnableError: it failed.
        """
        return self._ask(Job(tuple(map(str, pictures)), prompts or (CAPTION,), is_backfill), Answered)

    def memory(self) -> Memory | None:
        """Its memory, as Linux counts it; None on other systems."""
        path = Path(f"/proc/{self._process.pid}/status")
        if not path.exists():
            return None
        found = {name: int(kb) / 1024 for name, kb in _MEMORY.findall(path.read_text())}
        return Memory(found["VmHWM"], found["VmRSS"], found["RssFile"])

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, message: object, kind: type[T]) -> T:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise UnableError("it has no pipe")
        try:
            send(stdin, message)
            reply = receive(stdout)
        except (EOFError, BrokenPipeError):
            self.close()
            raise UnableError(f"its process ended with {self._process.returncode}") from None
        if isinstance(reply, kind):
            return reply
        self.close()
        raise UnableError(reply.reason if isinstance(reply, Unable) else f"it answered {reply!r}")
