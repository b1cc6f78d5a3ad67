"""When a file counts as whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from florence_daemon.folders.settle import Settling, Stamp, stamp_of
from tests.conftest import wait_for


class Disk:
    """Files as the test says they look."""

    def __init__(self) -> None:
        self.stamps: dict[str, Stamp] = {}

    def write(self, path: str, size_bytes: int) -> None:
        self.stamps[path] = Stamp(1, size_bytes, size_bytes, size_bytes)


def settling() -> tuple[Settling, Disk]:
    disk = Disk()
    return Settling(disk.stamps.get), disk


def ready_paths(files: Settling, now_s: float) -> list[str]:
    return [path for path, _ in files.ready(now_s)]


def test_file_that_stays_as_it_is_becomes_ready_after_its_settle_time() -> None:
    files, disk = settling()
    disk.write("a", 10)
    files.touch("a", 100.0, settle_s=1.0)
    assert ready_paths(files, 100.9) == []
    assert files.ready(101.0) == [("a", disk.stamps["a"])]
    assert len(files) == 0


def test_file_still_growing_is_not_ready() -> None:
    files, disk = settling()
    disk.write("a", 10)
    files.touch("a", 100.0, settle_s=1.0)
    disk.write("a", 20)
    assert ready_paths(files, 101.0) == []
    assert files.next_due_s() == 102.0
    assert ready_paths(files, 102.0) == ["a"]


def test_event_without_a_change_does_not_start_the_wait_again() -> None:
    files, disk = settling()
    disk.write("a", 10)
    files.touch("a", 100.0, settle_s=1.0)
    files.touch("a", 100.9, settle_s=1.0)
    assert ready_paths(files, 101.0) == ["a"]


def test_change_starts_the_wait_again() -> None:
    files, disk = settling()
    disk.write("a", 10)
    files.touch("a", 100.0, settle_s=1.0)
    disk.write("a", 20)
    files.touch("a", 100.9, settle_s=1.0)
    assert ready_paths(files, 101.0) == []
    assert ready_paths(files, 101.9) == ["a"]


def test_file_that_went_away_is_forgotten() -> None:
    files, disk = settling()
    disk.write("a", 10)
    files.touch("a", 100.0, settle_s=1.0)
    del disk.stamps["a"]
    assert ready_paths(files, 101.0) == []
    assert files.next_due_s() is None


def test_rewrite_that_keeps_size_and_date_is_seen_by_its_change_time(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"12345")
    os.utime(path, ns=(10**18, 10**18))
    before = stamp_of(str(path))
    assert before is not None

    def is_seen() -> bool:
        """Again until the file system's clock has ticked, which on some counts only every 10 ms."""
        path.write_bytes(b"54321")
        os.utime(path, ns=(10**18, 10**18))
        return stamp_of(str(path)) != before

    wait_for(is_seen)


def test_links_and_directories_have_no_stamp(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert stamp_of(str(tmp_path / "b.png")) is None
    assert stamp_of(str(tmp_path)) is None
    assert stamp_of(str(tmp_path / "none.png")) is None


def test_stamp_has_numbers_that_a_database_can_keep() -> None:
    far_ns = 13_569_465_600 * 10**9  # the year 2400
    status = os.stat_result(
        (stat.S_IFREG, 2**64 - 1, 0, 1, 0, 0, 10, 0, 0, 0), {"st_mtime_ns": far_ns, "st_ctime_ns": 20}
    )
    stamp = Stamp.of(status)
    assert stamp is not None
    assert stamp.inode == -1
    assert stamp.mtime_ns == far_ns - 2**64
