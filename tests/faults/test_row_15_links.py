"""Row 15: links in a circle and links out of the folder are not followed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from watchdog.events import FileOpenedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from benchmarks.faults.pictures import write_jpegs
from benchmarks.faults.process import wait_for
from florence_daemon.config import FolderConfig
from florence_daemon.folders.scan import find_images
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon


class Opened(FileSystemEventHandler):
    """Notes which files below a directory are opened by anybody."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def on_any_event(self, event: FileSystemEvent) -> None:
        self.paths.append(os.fsdecode(event.src_path))


@pytest.mark.skipif(not hasattr(Observer(), "_emitter_class"), reason="needs watchdog's observer")
def test_links_in_a_circle_and_out_are_not_followed(
    start: StartDaemon, folder: Path, tmp_path: Path, figure: Figure
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (secret,) = write_jpegs(outside, [1])
    (picture,) = write_jpegs(folder, [2])
    (folder / "sub").mkdir()
    for number in range(20):
        (folder / f"loop-{number}").symlink_to(folder)
        (folder / "sub" / f"loop-{number}").symlink_to(folder / "sub")
    (folder / "up").symlink_to(tmp_path)
    (folder / "everything").symlink_to("/")
    (folder / "away").symlink_to(outside)
    (folder / "secret.jpg").symlink_to(secret)
    (folder / "nowhere.jpg").symlink_to(tmp_path / "none.jpg")
    os.mkfifo(folder / "pipe.jpg")

    opened, observer = Opened(), Observer()
    observer.schedule(opened, str(outside), event_filter=[FileOpenedEvent])
    observer.start()
    began_s = time.monotonic()
    assert list(find_images(FolderConfig(path=folder))) == [str(picture)]
    scan_s = time.monotonic() - began_s
    daemon = start(poll="always", poll_s=1.0)
    wait_for(picture.with_suffix(".txt").exists, 60, "the caption of the one real picture")
    time.sleep(2.5)  # two more scans
    observer.stop()
    observer.join()
    assert [each.picture for each in daemon.inferred()] == [str(picture)]
    assert opened.paths == []
    assert not secret.with_suffix(".txt").exists()
    assert not (folder / "secret.txt").exists()
    assert scan_s < 1.0
    figure(f"42 loops and 3 links out: scan {scan_s * 1000:.1f} ms, 0 reads outside")
