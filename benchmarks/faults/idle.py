"""Row 7: the daemon has nothing to do for a long time; what it does anyway."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import count_sidecars, write_jpegs
from benchmarks.faults.process import DaemonProcess, wait_for, watching


@dataclass(frozen=True)
class Idle:
    """How it went. jobs: inferences meanwhile; cpu_s: processor time of the daemon; resident_mb: at the end."""

    pictures: int
    seconds: float
    jobs: int
    cpu_s: float
    resident_mb: float


def stay_idle(directory: Path, pictures: int, seconds: float, rescan_s: float = 300) -> Idle:
    """Caption pictures, then watch them for so long."""
    folder = directory / "pictures"
    folder.mkdir()
    write_jpegs(folder, range(pictures))
    with DaemonProcess(directory / "home", watching(folder, rescan_s=rescan_s), fake=FakeSettings()) as daemon:
        wait_for(lambda: count_sidecars(folder) == pictures, 60 + pictures / 20, "every caption", every_s=0.2)
        wait_for(daemon.is_quiet, 60, "nothing to be under way")
        before, before_s, began_s = len(daemon.inferred("begun")), daemon.cpu_s(), time.monotonic()
        time.sleep(seconds)
        return Idle(
            pictures=pictures,
            seconds=time.monotonic() - began_s,
            jobs=len(daemon.inferred("begun")) - before,
            cpu_s=daemon.cpu_s() - before_s,
            resident_mb=daemon.resident_mb(),
        )
