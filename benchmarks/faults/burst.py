"""Row 1: more events than the kernel's queue holds, while the daemon stands still."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import is_captioned_rightly, write_jpegs
from benchmarks.faults.process import DaemonProcess, NotInTime, wait_for, watching

_LIMIT = Path("/proc/sys/fs/inotify/max_queued_events")


@dataclass(frozen=True)
class Burst:
    """How it went. captioned: within the time that was given; converge_s: from the end of the freeze until then."""

    pictures: int
    captioned: int
    converge_s: float
    inferences: int


def queued_events() -> int:
    """How many events the kernel keeps for one observer before it drops the rest."""
    return int(_LIMIT.read_text())


def overflow(folder: Path) -> None:
    """Rename a file that is no picture back and forth until no further event fits into the queue."""
    one, other = folder / "noise.dat", folder / "noise.bin"
    one.touch()
    for _ in range(queued_events() // 2 + 100):
        one.rename(other)
        one, other = other, one
    one.unlink()


def lose_events(directory: Path, pictures: int, timeout_s: float) -> Burst:
    """Freeze the daemon, fill its queue of events, write pictures of which it will hear nothing, let it go on.

    The next regular rescan is 300 s away.
    """
    folder = directory / "pictures"
    folder.mkdir()
    with DaemonProcess(directory / "home", watching(folder), fake=FakeSettings()) as daemon:
        (early,) = write_jpegs(folder, [0])
        wait_for(lambda: is_captioned_rightly(early), 60, "the first caption")
        daemon.freeze()
        overflow(folder)
        paths = write_jpegs(folder, range(1, pictures + 1))
        daemon.thaw()
        began_s = time.monotonic()
        left = list(paths)

        def all_are_captioned() -> bool:
            while left and is_captioned_rightly(left[-1]):
                left.pop()
            return not left

        try:
            wait_for(all_are_captioned, timeout_s, "every caption", every_s=0.1)
        except NotInTime:
            left = [path for path in left if not is_captioned_rightly(path)]
        took_s = time.monotonic() - began_s
        return Burst(pictures, pictures - len(left), took_s, len(daemon.inferred()) - 1)
