"""Row 10: an unmount looks like a deletion of everything; nothing is deleted for it, nothing written in its place."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import is_captioned_rightly, write_jpegs
from benchmarks.faults.process import wait_for
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon
from tests.faults.spaces import after, inside, needs_namespace

# Longer than the time between two looks at the folder, so that the daemon has noticed.
# benchmarks.soak leaves the disk away for longer.
AWAY_S = float(os.environ.get("FLORENCE_TESTS_AWAY_S", "12"))


@needs_namespace
def test_unmount_in_the_middle_of_the_work_deletes_nothing_and_writes_nothing_below(
    start: StartDaemon, folder: Path, tmp_path: Path, figure: Figure
) -> None:
    disk, gate = tmp_path / "disk", tmp_path / "gate"
    disk.mkdir()
    captioned = write_jpegs(disk, range(10))
    mount = f"mount --bind '{disk}' '{folder}'"
    daemon = start(FakeSettings(gate=str(gate)), after(mount), rescan_s=3600)
    wait_for(lambda: all(is_captioned_rightly(path) for path in captioned), 60, "the first captions")

    gate.touch()
    held = write_jpegs(disk, range(10, 20))
    wait_for(lambda: len(daemon.inferred("begun")) > 10, 60, "an inference that waits for its answer")
    before = {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(disk)}
    # Again and again while the daemon has something of it open: a look takes no time, but may come just then.
    inside(daemon.pid, f"until umount '{folder}'; do sleep 0.1; done")
    gate.unlink()
    began_s = time.monotonic()
    wait_for(lambda: len(daemon.inferred()) > 10, 60, "the answer that comes too late")
    time.sleep(max(0.0, began_s + AWAY_S - time.monotonic()))
    below = inside(daemon.pid, f"ls -A '{folder}'").split()
    assert below == []
    assert {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(disk)} == before
    assert daemon.failures() == {}

    inside(daemon.pid, mount)
    wait_for(lambda: all(is_captioned_rightly(path) for path in held), 60, "the captions after the disk is back")
    assert all(is_captioned_rightly(path) for path in captioned)
    figure(f"unmounted for {AWAY_S:g} s in the middle of the work: 0 deletions, 0 writes below the mount point")
