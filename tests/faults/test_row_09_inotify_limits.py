"""Row 9: the system's limit of watched directories is reached; the folder is polled, says so, and goes back."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.faults.pictures import write_jpegs
from benchmarks.faults.process import wait_for
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon
from tests.faults.spaces import after, inside, needs_namespace

LIMIT = "/proc/sys/user/max_inotify_watches"
DIRECTORIES = 20


@needs_namespace
def test_all_is_captioned_with_five_watches_for_twenty_directories(
    start: StartDaemon, folder: Path, figure: Figure
) -> None:
    directories = [folder / f"{number:02}" for number in range(DIRECTORIES)]
    for directory in directories[:-1]:
        directory.mkdir()
    daemon = start(prefix=after(f"echo 5 > {LIMIT}"), poll_s=1.0, rescan_s=3600)
    told = "the limit user.max_inotify_watches = 5 is reached; raise it: sudo sysctl "
    wait_for(lambda: told in daemon.status()["folders"][0]["reason"], 60, "the limit to be told of")
    assert daemon.status()["folders"][0]["health"] == "degraded"

    directories[-1].mkdir()
    began_s = time.monotonic()
    pictures = [path for number, directory in enumerate(directories) for path in write_jpegs(directory, [number])]
    wait_for(lambda: all(path.with_suffix(".txt").exists() for path in pictures), 60, "all captions")
    took_s = time.monotonic() - began_s

    inside(daemon.pid, f"echo 5000 > {LIMIT}")
    told = "told of changes, and scanned every 3600 s"
    wait_for(lambda: daemon.status()["folders"][0]["watching"] == told, 60, "events to come back", every_s=0.5)
    assert daemon.status()["folders"][0]["health"] == "ok"
    (late,) = write_jpegs(directories[-1], [99])
    wait_for(late.with_suffix(".txt").exists, 60, "a caption by an event")
    figure(f"limit of 5: {len(pictures)}/{len(pictures)} captioned in {took_s:.1f} s, degraded until it was raised")
