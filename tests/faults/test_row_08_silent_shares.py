"""Row 8: a share tells nothing of what others write there; it is looked at often instead."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.pictures import write_jpegs
from benchmarks.faults.process import DaemonProcess, wait_for
from tests.faults.conftest import Figure, StartDaemon

POLL_S, SETTLE_S = 2.0, 0.2
# The longest that scan, queue and the stand-in engine may add on a busy machine.
SLACK_S = 2.0


def delays_s(daemon: DaemonProcess, behind: Path, seen: Path) -> list[float]:
    """Write three pictures, one after the other, and say how long each caption took."""
    found = []
    for number in range(3):
        began_s = time.monotonic()
        write_jpegs(behind, [number])
        wait_for((seen / f"{number:05}.txt").exists, POLL_S + SETTLE_S + SLACK_S, f"the caption of picture {number}")
        found.append(time.monotonic() - began_s)
    return found


@pytest.fixture
def share(tmp_path: Path, folder: Path) -> Iterator[Path]:
    """The directory behind `folder`, which becomes a FUSE file system over it."""
    if shutil.which("bindfs") is None:
        pytest.skip("needs bindfs, a file system that shows another directory")
    behind = tmp_path / "behind"
    behind.mkdir()
    mounted = subprocess.run(["bindfs", str(behind), str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"this machine mounts no FUSE file system: {mounted.stderr.strip()}")
    yield behind
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_share_that_is_written_from_elsewhere_is_polled(
    start: StartDaemon, share: Path, folder: Path, figure: Figure
) -> None:
    daemon = start(poll_s=POLL_S, settle_s=SETTLE_S, rescan_s=3600)
    wait_for(lambda: daemon.status()["folders"][0]["health"] == "ok", 10, "the folder to be looked at")
    (status,) = daemon.status()["folders"]
    assert status["watching"] == f"scanned every {POLL_S:g} s (fuse.bindfs does not tell of every change)" or (
        status["watching"] == f"scanned every {POLL_S:g} s (fuse does not tell of every change)"
    )
    slowest_s = max(delays_s(daemon, share, folder))
    figure(
        f"bindfs, written behind the mount: {slowest_s:.1f} s at the most (poll {POLL_S:g} s, settle {SETTLE_S:g} s)"
    )


def test_folder_that_is_polled_by_setting_needs_no_events(start: StartDaemon, folder: Path, figure: Figure) -> None:
    daemon = start(poll="always", poll_s=POLL_S, settle_s=SETTLE_S, rescan_s=3600)
    slowest_s = max(delays_s(daemon, folder, folder))
    assert daemon.status()["folders"][0]["watching"] == f"scanned every {POLL_S:g} s"
    figure(f"events off: {slowest_s:.1f} s at the most")
