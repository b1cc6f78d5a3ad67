"""Folders that cannot be written to rest, and go on by themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from florence_daemon.config import FolderConfig
from florence_daemon.folders.health import OK, Health
from florence_daemon.folders.pauses import FIRST_S, LONGEST_S, Pauses, can_write_in
from florence_daemon.folders.watch import Watcher
from tests.folders.intake import Notes
from tests.folders.test_watch import go_deaf


class Disk:
    """Which directories can be written, as the test says."""

    def __init__(self, *forbidden: str) -> None:
        self.forbidden = set(forbidden)
        self.probes: list[str] = []

    def can_write(self, directory: str) -> bool:
        self.probes.append(directory)
        return directory not in self.forbidden


def test_full_disk_rests_the_whole_root_until_it_can_be_written() -> None:
    disk = Disk("/r", "/r/a")
    pauses = Pauses("/r", disk.can_write)
    pauses.add("/r/a/1.jpg", "no space left")
    assert pauses.holds("/r/b/2.jpg")
    assert pauses.tick(100.0) == []
    assert pauses.holds("/r/b/2.jpg")
    assert pauses.reasons() == ["no space left"]
    disk.forbidden.clear()
    assert pauses.tick(100.0 + FIRST_S - 0.1) == []
    assert pauses.tick(100.0 + FIRST_S) == ["/r"]
    assert not pauses.holds("/r/a/1.jpg")


def test_one_forbidden_folder_rests_alone_and_the_others_are_scanned_at_once() -> None:
    pauses = Pauses("/r", Disk("/r/a").can_write)
    pauses.add("/r/a/1.jpg", "permission denied")
    assert pauses.tick(100.0) == ["/r"]
    assert pauses.holds("/r/a/2.jpg")
    assert not pauses.holds("/r/b/2.jpg")
    assert not pauses.holds_all()


def test_rests_double_up_to_the_longest() -> None:
    disk = Disk("/r")
    pauses = Pauses("/r", disk.can_write)
    pauses.add("/r/1.jpg", "read-only")
    pauses.tick(0.0)
    rests = []
    now_s = 0.0
    for _ in range(11):
        due_s = pauses.next_due_s()
        assert due_s is not None
        rests.append(due_s - now_s)
        now_s = due_s
        pauses.tick(now_s)
    assert rests == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, LONGEST_S]


def test_root_that_fails_again_soon_rests_longer() -> None:
    pauses = Pauses("/r", Disk().can_write)
    for expected_s in (FIRST_S, 2 * FIRST_S):
        pauses.add("/r/1.jpg", "disk quota exceeded")
        pauses.tick(100.0)
        assert pauses.next_due_s() == 100.0 + expected_s
        pauses.tick(100.0 + expected_s)


def test_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    assert can_write_in(str(tmp_path))
    assert os.listdir(tmp_path) == []
    assert can_write_in(str(tmp_path / "gone"))
    (tmp_path / "file").write_bytes(b"")
    assert not can_write_in(str(tmp_path / "file"))


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def watcher(tmp_path: Path, notes: Notes, clock: list[float]) -> Watcher:
    return Watcher([FolderConfig(path=tmp_path, settle_s=1.0)], notes, lambda: clock[0])


def test_paused_root_gets_nothing_and_is_scanned_when_it_goes_on(
    watcher: Watcher, notes: Notes, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    watcher.tick(100.0)
    watcher.pause(str(tmp_path / "a.jpg"), "no space left on device")
    watcher.tick(102.0)
    assert notes.paths == []
    assert watcher.is_paused(str(tmp_path / "a.jpg"))
    assert watcher.health() == Health("degraded", f"{tmp_path}: paused: no space left on device")
    watcher.tick(102.0 + FIRST_S)
    watcher.tick(104.0 + FIRST_S)
    assert notes.paths == [str(tmp_path / "a.jpg")]
    assert watcher.health() == OK
    watcher.close()


def test_touch_looks_again_after_its_delay(watcher: Watcher, notes: Notes, tmp_path: Path) -> None:
    watcher.tick(100.0)
    go_deaf(watcher)
    (tmp_path / "a.jpg").write_bytes(b"x")
    watcher.touch(str(tmp_path / "a.jpg"), delay_s=5.0)
    assert watcher.tick(104.9) == 105.0
    assert watcher.settling == 0
    watcher.tick(105.0)
    assert watcher.settling == 1
    watcher.tick(106.0)
    assert notes.paths == [str(tmp_path / "a.jpg")]
    watcher.close()
