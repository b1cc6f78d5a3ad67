"""Row 5: the daemon is killed at any moment, by chance or just before a chosen system call; what is on disk then."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings, answer_to
from benchmarks.faults.pictures import CAPTION, is_captioned_rightly, sidecar, write_jpegs
from benchmarks.faults.process import DaemonProcess, NotInTime, wait_for, watching

# Answers longer than a page, so that half a sidecar could be seen.
ENGINE = FakeSettings(slow_s=0.004, answer_bytes=9000)


@dataclass(frozen=True)
class Kills:
    """How it went. torn: sidecars that were not whole after some kill. lost: pictures without a caption in the end.

    in_flight: pictures that the engine had begun since the start and that had no sidecar at the kill, over all kills.
    twice: inferences beyond one for each picture. left_over: temporary files in the end. aside: pictures that the last
    daemon found in the list of failures, because three kills in a row had met them. seconds: all of it.
    """

    kills: int
    pictures: int
    lost: int
    torn: int
    in_flight: int
    twice: int
    left_over: int
    aside: int
    seconds: float


class Ordeal:
    """A folder of pictures, the daemons that were killed over it, and what was seen after each kill."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        self.folder = directory / "pictures"
        self.folder.mkdir()
        self.paths: list[Path] = []
        self.whole: dict[Path, str] = {}
        self.config = watching(self.folder, settle_s=0.05, rescan_s=2)
        self.kills = 0
        self.in_flight = 0
        self.torn: set[Path] = set()
        self._begun_before = 0
        self._began_s = time.monotonic()

    def add(self, pictures: int) -> None:
        """Write further pictures."""
        for path in write_jpegs(self.folder, range(len(self.paths), len(self.paths) + pictures)):
            self.paths.append(path)
            self.whole[path] = answer_to(CAPTION, path.read_bytes(), ENGINE.answer_bytes) + "\n"

    def start(self, *prefix: str, start_s: float = 180) -> DaemonProcess:
        """Start the next daemon."""
        return DaemonProcess(self.home, self.config, fake=ENGINE, prefix=prefix, start_s=start_s)

    def look(self, daemon: DaemonProcess) -> None:
        """Note what a kill has left behind."""
        self.kills += 1
        written = {path for path in self.paths if sidecar(path).exists()}
        self.torn |= {path for path in written if sidecar(path).read_text() != self.whole[path]}
        begun = [Path(each.picture) for each in daemon.inferred("begun") if each.picture is not None]
        self.in_flight += len(set(begun[self._begun_before :]) - written)
        self._begun_before = len(begun)

    def finish(self, timeout_s: float) -> Kills:
        """Let a last daemon do the rest, also what was set aside because three kills met it, and judge."""
        with self.start() as daemon:
            aside = len(daemon.failures())
            with suppress(NotInTime):
                wait_for(lambda: self.count_done() == len(self.paths), timeout_s, "every caption", every_s=0.1)
            daemon.stop()
            done = Counter(each.picture for each in daemon.inferred())
        lost = [path for path in self.paths if not is_captioned_rightly(path, ENGINE.answer_bytes)]
        left_over = [name for name in os.listdir(self.folder) if name.startswith(".")]
        return Kills(
            kills=self.kills,
            pictures=len(self.paths),
            lost=len(lost),
            torn=len(self.torn),
            in_flight=self.in_flight,
            twice=sum(done.values()) - len(done),
            left_over=len(left_over),
            aside=aside,
            seconds=time.monotonic() - self._began_s,
        )

    def count_done(self) -> int:
        """How many pictures have their sidecar."""
        return sum(sidecar(path).exists() for path in self.paths)


def kill_by_chance(
    directory: Path, pictures: int, kills: int, seed: int, say: Callable[[int], None] = lambda kill: None
) -> Kills:
    """Kill the daemon again and again, a moment after its engine has begun on a picture.

    say: told of each kill.
    """
    chance = random.Random(seed)
    ordeal = Ordeal(directory)
    ordeal.add(pictures)
    # So far into the work that the pictures last for all kills.
    pace = max(1, (pictures - 10) // (kills + 1))
    for number in range(kills):
        # On a busy machine a kill comes late, and much is done by then.
        ordeal.add(max(0, 2 * pace - (len(ordeal.paths) - ordeal.count_done())))
        with ordeal.start() as daemon:
            before = len(daemon.inferred("begun"))
            more = chance.randint(1, pace)
            _await_inferences(daemon, before + more)
            time.sleep(chance.uniform(0, 0.03))
            daemon.kill()
            ordeal.look(daemon)
        say(number + 1)
    return ordeal.finish(60 + pictures)


def _await_inferences(daemon: DaemonProcess, count: int) -> None:
    log = daemon.inferences

    def has_begun() -> bool:
        return log.exists() and log.read_bytes().count(b'"begun"') >= count

    wait_for(has_begun, 60, "the engine to begin", every_s=0.002)


def kill_at_calls(directory: Path, pictures: int, calls: list[tuple[str, int]]) -> tuple[Kills, list[str]]:
    """Kill the daemon just before the nth time that one of its threads makes a system call; each of `calls` once.

    Each time there are so many new pictures. Returns how it went, and the calls that did not come.
    """
    ordeal = Ordeal(directory)
    never = []
    for call, nth in calls:
        ordeal.add(pictures)
        inject = f"inject={call}:signal=KILL:when={nth}"
        with ordeal.start("strace", "-f", "-qq", "-o", os.devnull, "-e", inject, start_s=0) as traced:
            until_s = time.monotonic() + 180
            while traced.process.poll() is None and time.monotonic() < until_s:
                if ordeal.count_done() == len(ordeal.paths):
                    break
                time.sleep(0.02)
            if traced.process.poll() is None:
                never.append(f"{call} {nth}")
            _kill_below(traced)
            ordeal.look(traced)
    return ordeal.finish(60 + len(ordeal.paths)), never


def _kill_below(traced: DaemonProcess) -> None:
    """End strace and what it traces."""
    for child in traced.children() if traced.process.poll() is None else []:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    traced.process.wait(60)


@cache
def why_no_strace() -> str | None:
    """Why no system call can be met here; None when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()}"
