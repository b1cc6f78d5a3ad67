"""Row 8: a share tells nothing of what others write there; it is looked at often instead."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import jpeg, write_jpegs
from benchmarks.faults.process import DaemonProcess, wait_for, watching
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon

POLL_S, SETTLE_S = 2.0, 0.2
# The longest that scan, queue and the stand-in engine may add on a busy machine; far less than rescan_s, which would
# find the pictures too.
SLACK_S = 60.0


def delays_s(daemon: DaemonProcess, behind: Path, seen: Path) -> list[float]:
    """Write three pictures, one after the other, and say how long each caption took."""
    found = []
    for number in range(3):
        began_s = time.monotonic()
        write_jpegs(behind, [number])
        wait_for((seen / f"{number:05}.txt").exists, POLL_S + SETTLE_S + SLACK_S, f"the caption of picture {number}")
        found.append(time.monotonic() - began_s)
    return found


needs_bindfs = pytest.mark.skipif(
    shutil.which("bindfs") is None, reason="needs bindfs, a file system that shows another directory"
)


@pytest.fixture
def share(tmp_path: Path, folder: Path) -> Iterator[Path]:
    """The directory behind `folder`, which becomes a FUSE file system over it."""
    behind = tmp_path / "behind"
    behind.mkdir()
    with mount_over(folder, behind):
        yield behind


@contextmanager
def mount_over(folder: Path, behind: Path) -> Iterator[int]:
    """Show `behind` at `folder`; give the id of the process that does."""
    process = subprocess.Popen(["bindfs", "-f", str(behind), str(folder)], stderr=subprocess.PIPE, text=True)
    while not os.path.ismount(folder):
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.skip(f"this machine mounts no FUSE file system: {process.stderr.read().strip()}")
        time.sleep(0.02)
    try:
        yield process.pid
    finally:
        os.kill(process.pid, signal.SIGCONT)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        process.terminate()  # Else it stays for as long as anybody has a file of it open.
        process.wait(60)
        assert process.stderr is not None
        process.stderr.close()


@needs_bindfs
def test_share_that_is_written_from_elsewhere_is_polled(
    start: StartDaemon, share: Path, folder: Path, figure: Figure
) -> None:
    daemon = start(poll_s=POLL_S, settle_s=SETTLE_S, rescan_s=3600)
    told = [f"scanned every {POLL_S:g} s ({kind} does not tell of every change)" for kind in ("fuse.bindfs", "fuse")]
    wait_for(lambda: daemon.status()["folders"][0]["watching"] in told, 60, "the folder to be looked at")
    assert daemon.status()["folders"][0]["health"] == "ok"
    slowest_s = max(delays_s(daemon, share, folder))
    figure(
        f"bindfs, written behind the mount: {slowest_s:.1f} s at the most (poll {POLL_S:g} s, settle {SETTLE_S:g} s)"
    )


def test_folder_that_is_polled_by_setting_needs_no_events(start: StartDaemon, folder: Path, figure: Figure) -> None:
    daemon = start(poll="always", poll_s=POLL_S, settle_s=SETTLE_S, rescan_s=3600)
    slowest_s = max(delays_s(daemon, folder, folder))
    assert daemon.status()["folders"][0]["watching"] == f"scanned every {POLL_S:g} s"
    figure(f"events off: {slowest_s:.1f} s at the most")


@needs_bindfs
def test_share_that_hangs_holds_up_no_other_folder(tmp_path: Path, folder: Path, figure: Figure) -> None:
    hung, behind = tmp_path / "hung", tmp_path / "behind"
    hung.mkdir()
    behind.mkdir()
    folders = [json.loads(watching(path, poll_s=1.0))["folders"][0] for path in (hung, folder)]
    config = json.dumps({"model": {"name": "demo"}, "folders": folders})
    with mount_over(hung, behind) as server, DaemonProcess(tmp_path / "home", config, fake=FakeSettings()) as daemon:
        write_jpegs(behind, [1])
        (behind / "short.jpg").write_bytes(jpeg(2)[:-20])
        wait_for((behind / "00001.txt").exists, 60, "a caption on the share while it answers")
        wait_for(daemon.failures, 60, "a failure on the share")
        os.kill(server, signal.SIGSTOP)
        time.sleep(2.0)  # the share's next scan hangs by now
        slowest_s = max(delays_s(daemon, folder, folder))
        assert list(daemon.failures()) == [str(hung / "short.jpg")], "the status answers, and lists it still"
        began_s = time.monotonic()
        assert daemon.stop() == 0
        stopped_s = time.monotonic() - began_s
        os.kill(server, signal.SIGCONT)
    figure(f"a share that hangs: the other folder's captions after {slowest_s:.1f} s, stop after {stopped_s:.1f} s")
