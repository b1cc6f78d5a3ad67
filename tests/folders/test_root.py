"""One folder: how much waits at once, when it is scanned, what others see to, what it says of itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from florence_daemon.config import FolderConfig
from florence_daemon.folders import root as rooms
from florence_daemon.folders.health import OK, Health, overall
from florence_daemon.folders.listening import BURST, CALM_S
from florence_daemon.folders.root import CHECK_S, FULL_S, RootWatcher
from florence_daemon.folders.scan import Listing
from florence_daemon.folders.watch import HANGS_S, Watcher
from tests.conftest import wait_for
from tests.folders.intake import Notes
from tests.folders.test_watch import go_deaf

Make = Callable[..., Watcher]


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def make(tmp_path: Path, notes: Notes, clock: list[float]) -> Iterator[Make]:
    """A watcher without threads of its own, over `tmp_path` with these settings."""
    made: list[Watcher] = []

    def make_one(*more: FolderConfig, jitter: float = 0.5, **settings: object) -> Watcher:
        folder = FolderConfig(path=tmp_path, **{"settle_s": 0.0, **settings})  # type: ignore[arg-type]
        made.append(Watcher([folder, *more], notes, lambda: clock[0], jitter=lambda: jitter))
        return made[-1]

    yield make_one
    for watcher in made:
        watcher.close()


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_scan_stops_while_enough_wait_and_goes_on_where_it_was(
    make: Make, notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "WINDOW", 4)
    write(tmp_path, *(f"{letter}/{number}.jpg" for letter in "ab" for number in range(5)))
    watcher = make()
    watcher.tick(100.0)
    assert notes.names(tmp_path) == [f"a/{number}.jpg" for number in range(4)]
    notes.waiting_now = 4
    assert watcher.tick(100.0) == 100.0 + FULL_S
    assert len(notes.paths) == 4
    notes.waiting_now = 2
    watcher.tick(101.0)
    assert notes.names(tmp_path)[4:] == ["a/4.jpg", "b/0.jpg"]
    assert watcher.roots[0].is_scanning
    notes.waiting_now = 0
    watcher.tick(102.0)
    watcher.tick(103.0)
    assert len(notes.paths) == 10
    assert not watcher.roots[0].is_scanning


def test_event_during_a_long_scan_is_not_kept_waiting_by_it(
    make: Make, notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "WINDOW", 2)
    write(tmp_path, *(f"{number}.jpg" for number in range(5)))
    watcher = make()
    watcher.tick(100.0)
    notes.waiting_now = 2
    write(tmp_path, "new.jpg")
    watcher.touch(str(tmp_path / "new.jpg"))
    watcher.tick(100.0)
    assert notes.names(tmp_path) == ["0.jpg", "1.jpg", "new.jpg"]


def test_events_beyond_all_room_are_left_to_a_scan(
    make: Make, notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "WINDOW", 1)
    monkeypatch.setattr(rooms, "EVENTS_WINDOW", 1)
    watcher = make()
    watcher.tick(100.0)
    go_deaf(watcher)
    notes.waiting_now = 2
    write(tmp_path, "a.jpg")
    watcher.touch(str(tmp_path / "a.jpg"))
    watcher.tick(100.0)
    assert notes.paths == []
    notes.waiting_now = 0
    watcher.tick(101.0)
    assert notes.names(tmp_path) == ["a.jpg"]


def test_how_many_wait_is_asked_once_in_a_step_and_not_for_each_event(make: Make, notes: Notes, tmp_path: Path) -> None:
    """It takes 0.6 ms of the queue's lock when 8,000 wait."""
    watcher = make()
    watcher.tick(100.0)
    names = [f"{number:03}.jpg" for number in range(100)]
    write(tmp_path, *names)
    for name in names:
        watcher.touch(str(tmp_path / name))
    notes.times_asked = 0
    watcher.tick(101.0)
    assert notes.names(tmp_path) == names
    assert notes.times_asked == 1


@pytest.mark.parametrize(("jitter", "due_s"), [(0.0, 75.0), (0.5, 100.0), (1.0, 125.0)])
def test_rescans_are_spread_by_a_quarter(make: Make, notes: Notes, tmp_path: Path, jitter: float, due_s: float) -> None:
    watcher = make(jitter=jitter, rescan_s=100.0)
    watcher.tick(100.0)
    go_deaf(watcher)
    write(tmp_path, "a.jpg")
    watcher.tick(100.0 + due_s - 0.5)
    assert notes.paths == []
    watcher.tick(100.0 + due_s)
    assert notes.names(tmp_path) == ["a.jpg"]


def test_polled_folder_is_scanned_every_poll_s_without_events(make: Make, notes: Notes, tmp_path: Path) -> None:
    watcher = make(poll="always", poll_s=10.0)
    watcher.tick(100.0)
    write(tmp_path, "a.jpg")
    watcher.tick(109.9)
    assert notes.paths == []
    watcher.tick(110.0)
    assert notes.names(tmp_path) == ["a.jpg"]
    assert watcher.roots[0].watching() == "scanned every 10 s"


def test_scan_that_takes_long_rests_longer(make: Make, notes: Notes, clock: list[float], tmp_path: Path) -> None:
    watcher = make(poll="always", poll_s=10.0)

    def slow(folder: FolderConfig, listing: Listing) -> list[str]:
        clock[0] += 20.0
        return []

    notes.lacking = slow  # type: ignore[method-assign, assignment]
    watcher.tick(100.0)
    assert watcher.roots[0].is_scanning
    clock[0] = 120.0
    watcher.tick(120.0)
    assert watcher.roots[0]._scans.next_s == 120.0 + 9 * 20.0


def test_many_events_are_followed_by_a_scan_when_it_is_calm(make: Make, notes: Notes, tmp_path: Path) -> None:
    watcher = make()
    watcher.tick(100.0)
    go_deaf(watcher)
    write(tmp_path, "lost.jpg")
    watcher.roots[0]._listening._events._inbox._news.count = BURST
    assert watcher.tick(101.0) == 101.0 + CALM_S
    assert notes.paths == []
    watcher.tick(101.0 + CALM_S)
    assert notes.names(tmp_path) == ["lost.jpg"]


def test_folder_inside_another_is_left_to_its_own_settings(make: Make, notes: Notes, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "inner/b.jpg", "inner/c.png", "inner/deep/d.jpg", "innermost/e.jpg")
    watcher = make(FolderConfig(path=tmp_path / "inner", settle_s=0.0, recursive=False, include=("*.jpg",)))
    watcher.tick(100.0)
    assert sorted(notes.names(tmp_path)) == ["a.jpg", "inner/b.jpg", "innermost/e.jpg"]
    write(tmp_path, "inner/f.png")
    watcher.touch(str(tmp_path / "inner" / "f.png"))
    watcher.tick(101.0)
    assert len(notes.paths) == 3


def test_picture_whose_directory_became_a_link_is_left_out(make: Make, notes: Notes, tmp_path: Path) -> None:
    watcher = make()
    write(tmp_path, ".outside/a.jpg", "b/a.jpg")
    watcher.tick(100.0)
    (tmp_path / "sub").symlink_to(".outside")
    watcher.touch(str(tmp_path / "sub" / "a.jpg"))
    watcher.tick(101.0)
    assert notes.names(tmp_path) == ["b/a.jpg"]


def test_rescan_can_be_asked_for(make: Make, notes: Notes, tmp_path: Path) -> None:
    watcher = make()
    watcher.tick(100.0)
    go_deaf(watcher)
    write(tmp_path, "a.jpg")
    assert watcher.rescan(str(tmp_path / "sub")) == 1
    assert watcher.rescan("/elsewhere") == 0
    watcher.tick(101.0)
    assert notes.names(tmp_path) == ["a.jpg"]


def test_what_is_gone_is_not_told_of(notes: Notes, tmp_path: Path) -> None:
    """An unmount looks like a deletion: an intake hears of images that are there, and of nothing else."""
    write(tmp_path, "root/a.jpg", "root/a.txt")
    watcher = Watcher([FolderConfig(path=tmp_path / "root", settle_s=0.0)], notes, lambda: 100.0)
    watcher.tick(100.0)
    os.rename(tmp_path / "root", tmp_path / "unmounted")
    watcher.tick(100.0 + CHECK_S)
    assert watcher.health().state == "failed"
    os.rename(tmp_path / "unmounted", tmp_path / "root")
    watcher.tick(100.0 + 2 * CHECK_S)
    watcher.close()
    assert watcher.health() == OK
    assert (tmp_path / "root" / "a.txt").exists()
    assert notes.names(tmp_path) == ["root/a.jpg"]


def test_scan_that_fails_is_begun_again_soon(
    make: Make, notes: Notes, clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.jpg")
    watcher = make()
    with monkeypatch.context() as patch:
        patch.setattr(notes, "lacking", lambda folder, listing: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            watcher.tick(100.0)
    watcher.tick(clock[0] + 10.0)
    assert notes.names(tmp_path) == ["a.jpg"]


def test_folder_that_does_not_answer_is_said_and_holds_up_no_other(
    make: Make, notes: Notes, clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, well = tmp_path / "dead", tmp_path / "well"
    dead.mkdir()
    write(tmp_path, "well/a.jpg")
    folders = [FolderConfig(path=path, settle_s=0.0) for path in (dead, well)]
    watcher = Watcher(folders, notes, lambda: clock[0])
    answers = threading.Event()
    tick = RootWatcher.tick

    def hang(self: RootWatcher, now_s: float) -> float:
        due_s = tick(self, now_s)
        if self.path == str(dead):
            answers.wait()
        return due_s

    monkeypatch.setattr(RootWatcher, "tick", hang)
    thread = threading.Thread(target=watcher.run, daemon=True)
    thread.start()
    wait_for(lambda: notes.paths == [str(well / "a.jpg")], 60, "the picture of the other folder")
    wait_for(lambda: watcher.roots[0].ticked_s == clock[0], 60, "the look at the dead one to begin")
    clock[0] += HANGS_S + 1
    health = watcher.health_of(watcher.roots[0])
    assert health == Health("failed", "its file system has not answered for 61 s; the others go on")
    assert watcher.is_paused(str(dead / "b.jpg"))
    watcher.roots[1].wake.set()
    wait_for(lambda: not watcher.is_paused(str(well / "b.jpg")), 60, "the other folder's next step")
    answers.set()
    watcher.stop()
    thread.join()


def test_folders_together_are_as_bad_as_some_and_failed_only_when_all_are() -> None:
    ill, worse = Health("degraded", "is slow"), Health("failed", "is not there")
    assert overall([]) == OK
    assert overall([("/a", OK), ("/b", OK)]) == OK
    assert overall([("/a", OK), ("/b", worse)]) == Health("degraded", "/b: is not there")
    assert overall([("/a", worse), ("/b", ill)]) == Health("degraded", "/a: is not there; /b: is slow")
    assert overall([("/a", worse)]) == Health("failed", "/a: is not there")


def test_directory_that_may_not_be_looked_into_is_said(
    make: Make, notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.jpg", "secret/b.jpg", "z/c.jpg")
    scandir, secret = os.scandir, str(tmp_path / "secret")

    def forbid(path: str) -> Iterator[os.DirEntry[str]]:
        if path == secret:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    watcher = make()
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", forbid)  # whoever runs the tests may be root, whom no mode stops
        watcher.tick(100.0)
    assert notes.names(tmp_path) == ["a.jpg", "z/c.jpg"]
    reason = f"{secret}: cannot be looked into: Permission denied"
    assert watcher.health() == Health("degraded", f"{tmp_path}: {reason}")
    watcher.rescan()
    watcher.tick(101.0)
    assert watcher.health() == OK
