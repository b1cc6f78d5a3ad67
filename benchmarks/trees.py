"""How long a large tree takes to scan, what it costs in memory, and how many files are opened for it.

    python -m benchmarks.trees --files 1000000 --folders 10000

makes that many pictures (empty files: a scan opens none) below a temporary directory, scans them as the daemon does,
with the real watcher, intake, queue and ledger and an engine that takes no time, then gives each its sidecar and scans
again. The directory is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.progress import say
from florence_daemon.config import FolderConfig, ModelConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.needs import Needs
from florence_daemon.folders.records import making_of
from florence_daemon.folders.watch import Watcher
from florence_daemon.intake import FolderIntake
from florence_daemon.queue import JobQueue

# Directories in each directory that only holds directories.
FAN_OUT = 100


@dataclass(frozen=True)
class Scanned:
    """What one scan took. cpu_s: of it at work, all threads. opened: files below the tree that were opened."""

    files: int
    seconds: float
    cpu_s: float
    submitted: int
    opened: int
    resident_mb: float

    @property
    def seconds_per_100_000(self) -> float:
        """The figure that the aim is about."""
        return self.seconds * 100_000 / self.files


def make_tree(root: Path, files: int, folders: int) -> None:
    """Make empty files `0000000.jpg`, …, as many in each of the folders."""
    for number in range(files):
        in_folder = number * folders // files
        directory = root / f"{in_folder // FAN_OUT:03}" / f"{in_folder % FAN_OUT:02}"
        if number == 0 or in_folder != (number - 1) * folders // files:
            directory.mkdir(parents=True, exist_ok=True)
        make_empty(directory / f"{number:07}.jpg")


def make_empty(path: Path) -> None:
    """Make a file that holds nothing."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def give_sidecars(root: Path) -> None:
    """Make a sidecar for each picture: hard links to the first one of its directory, which are quicker to make."""
    for directory, _, names in os.walk(root):
        first = ""
        for name in names:
            sidecar = os.path.join(directory, f"{os.path.splitext(name)[0]}.txt")
            if first:
                os.link(first, sidecar)
            else:
                make_empty(Path(sidecar))
                first = sidecar


class Opened:
    """Counts what this process opens below a directory. Python tells its audit hooks; they cannot be removed."""

    def __init__(self) -> None:
        self.below = ""
        self.count = 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and self.below and str(arguments[0]).startswith(self.below):
            self.count += 1


def scan(root: Path, files: int, state: Path, opened: Opened) -> Scanned:
    """Scan the tree once, from nothing to everything submitted."""
    queue, ledger = JobQueue(max_queued=1), Ledger(state)
    folder = FolderConfig(path=root, settle_s=0.0, outputs=(OutputConfig(prompt="CAPTION", ext="txt"),), poll="always")
    watcher = Watcher(
        [folder], FolderIntake(queue, ledger, Needs(ledger, partial(making_of, ModelConfig()))), time.monotonic
    )
    submitted = 0

    def caption_at_once() -> None:
        nonlocal submitted
        while (job := queue.claim(None)) is not None:
            queue.finish(job)
            submitted += 1

    sink = threading.Thread(target=caption_at_once)
    sink.start()
    opened.below, opened.count = str(root), 0
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    due_s = watcher.tick(began_s)
    while watcher.roots[0].is_scanning or watcher.settling:
        time.sleep(max(0.0, due_s - time.monotonic()))
        due_s = watcher.tick(time.monotonic())
    seconds, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    opened.below = ""
    watcher.close()
    while not queue.is_idle():
        time.sleep(0.01)
    queue.close()
    sink.join()
    ledger.close()
    resident_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Scanned(files, seconds, cpu_s, submitted, opened.count, resident_mb)


def measure(files: int, folders: int, root: Path, state: Path) -> tuple[Scanned, Scanned]:
    """Make the tree and scan it twice: as it is, and with all sidecars there."""
    opened = Opened()
    say(f"making {files:,} files in {folders:,} folders")
    make_tree(root, files, folders)
    first = _tell("first scan", lambda: scan(root, files, state, opened))
    give_sidecars(root)
    return first, _tell("rescan", lambda: scan(root, files, state, opened))


def _tell(name: str, scan_it: Callable[[], Scanned]) -> Scanned:
    done = scan_it()
    print(
        f"{name}: {done.seconds:.1f} s, {done.seconds_per_100_000:.2f} s per 100,000 files "
        f"({100 * done.cpu_s / done.seconds:.0f} % of it at work), "
        f"{done.submitted:,} submitted, {done.opened} opened, at most {done.resident_mb:.0f} MB resident",
        flush=True,
    )
    return done


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folders", type=int, default=1_000)
    parser.add_argument("--dir", type=Path, help="where the tree is made; a disk, not memory")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        measure(options.files, options.folders, Path(directory, "tree"), Path(directory, "state"))


if __name__ == "__main__":
    main()
