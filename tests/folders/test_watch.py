"""Watching: a real file system and the real observer; only the intake is replaced, and the clock in steps."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from watchdog.events import FileCreatedEvent

from florence_daemon.config import FolderConfig
from florence_daemon.folders.events import threads_of
from florence_daemon.folders.health import OK
from florence_daemon.folders.root import CHECK_S
from florence_daemon.folders.watch import Watcher
from tests.conftest import wait_for
from tests.folders.intake import Notes

SETTLE_S = 0.2


class Watched:
    """A watcher on its thread over one folder."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.root = root
        self.notes = Notes()
        folder = FolderConfig(path=root, **{"settle_s": SETTLE_S, **settings})  # type: ignore[arg-type]
        self.watcher = Watcher([folder], self.notes, time.monotonic)
        self.thread = threading.Thread(target=self.watcher.run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.watcher.health() == OK, 60)

    def wait_for_names(self, *names: str, timeout_s: float = 60) -> None:
        expected = {str(self.root / name) for name in names}
        wait_for(lambda: expected <= set(self.notes.paths), timeout_s, f"{names}, got {self.notes.paths}")

    def stop(self) -> None:
        self.watcher.stop()
        self.thread.join()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    (tmp_path / "in").mkdir()
    watching = Watched(tmp_path / "in")
    yield watching
    watching.stop()


def test_images_already_there_are_found_at_start(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.png"):
        (tmp_path / name).write_bytes(b"x")
    watching = Watched(tmp_path)
    watching.wait_for_names("a.jpg", "sub/b.png")
    watching.stop()


def test_every_way_of_arriving_is_noticed(watched: Watched, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("moved.jpg", "linked.jpg"):
        (outside / name).write_bytes(b"x")
    (outside / "folder").mkdir()
    (outside / "folder" / "inside.jpg").write_bytes(b"x")
    shutil.copy(outside / "moved.jpg", watched.root / "copied.jpg")
    os.rename(outside / "moved.jpg", watched.root / "moved.jpg")
    os.link(outside / "linked.jpg", watched.root / "linked.jpg")
    (watched.root / "upload.jpg.part").write_bytes(b"x")
    os.rename(watched.root / "upload.jpg.part", watched.root / "upload.jpg")
    os.rename(outside / "folder", watched.root / "folder")
    (watched.root / "deep" / "er").mkdir(parents=True)
    (watched.root / "deep" / "er" / "new.jpg").write_bytes(b"x")
    names = ("copied.jpg", "moved.jpg", "linked.jpg", "upload.jpg", "folder/inside.jpg", "deep/er/new.jpg")
    watched.wait_for_names(*names)
    assert len(watched.notes.paths) == len(names)


def test_file_written_later_into_a_moved_in_directory_is_noticed(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    os.rename(tmp_path / "new", watched.root / "new")
    time.sleep(0.3)
    (watched.root / "new" / "late.jpg").write_bytes(b"x")
    watched.wait_for_names("new/late.jpg")


def test_sidecars_dotfiles_and_temporary_names_are_ignored(watched: Watched) -> None:
    for name in ("a.txt", "a.tag", ".b.jpg", "~c.jpg", "d.jpg.part"):
        (watched.root / name).write_bytes(b"x")
    (watched.root / "real.jpg").write_bytes(b"x")
    watched.wait_for_names("real.jpg")
    assert watched.notes.paths == [str(watched.root / "real.jpg")]


def test_subfolders_are_left_alone_when_not_recursive(tmp_path: Path) -> None:
    watching = Watched(tmp_path, recursive=False)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jpg").write_bytes(b"x")
    (tmp_path / "b.jpg").write_bytes(b"x")
    watching.wait_for_names("b.jpg")
    assert watching.notes.paths == [str(tmp_path / "b.jpg")]
    watching.stop()


def test_innermost_folder_has_the_say(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.jpg").write_bytes(b"x")
    (tmp_path / "inner" / "b.png").write_bytes(b"x")
    folders = [FolderConfig(path=tmp_path), FolderConfig(path=tmp_path / "inner", include=("*.jpg",))]
    notes = Notes()
    watcher = Watcher(folders, notes, lambda: 0.0)
    watcher.tick(100.0)
    watcher.tick(102.0)
    watcher.close()
    assert notes.paths == [str(tmp_path / "inner" / "a.jpg")]


@pytest.fixture
def stepped(tmp_path: Path) -> Iterator[tuple[Watcher, Notes, Path]]:
    """A watcher without its thread, over a folder that need not exist; the test says what time it is."""
    notes = Notes()
    root = tmp_path / "root"
    folder = FolderConfig(path=root, rescan_s=60.0)
    watcher = Watcher([folder], notes, lambda: 0.0, jitter=lambda: 0.5)
    yield watcher, notes, root
    watcher.close()


def test_folder_that_appears_later_is_watched_then(stepped: tuple[Watcher, Notes, Path]) -> None:
    watcher, notes, root = stepped
    watcher.tick(100.0)
    assert watcher.health().state == "failed"
    root.mkdir()
    (root / "a.jpg").write_bytes(b"x")
    watcher.tick(100.0 + CHECK_S)
    watcher.tick(102.0 + CHECK_S)
    assert watcher.health() == OK
    assert notes.paths == [str(root / "a.jpg")]


def test_file_that_grows_is_taken_once_when_it_has_stopped(stepped: tuple[Watcher, Notes, Path]) -> None:
    watcher, notes, root = stepped
    root.mkdir()
    watcher.tick(100.0)
    with (root / "slow.jpg").open("wb", buffering=0) as file:
        for second in range(15):
            file.write(b"x" * 1000)
            wait_for(lambda now_s=101.0 + second: watcher.tick(now_s) and watcher.settling, 60, "the first event")
            assert notes.paths == []
    for now_s in (116.0, 117.0, 118.0, 119.0):
        watcher.tick(now_s)
    assert notes.paths == [str(root / "slow.jpg")]


def test_folder_that_was_removed_and_made_again_is_watched_again(stepped: tuple[Watcher, Notes, Path]) -> None:
    watcher, notes, root = stepped
    root.mkdir()
    watcher.tick(100.0)
    shutil.rmtree(root)
    watcher.tick(100.0 + CHECK_S)
    assert watcher.health().state == "failed"
    root.mkdir()
    watcher.tick(100.0 + 2 * CHECK_S)
    (root / "a.jpg").write_bytes(b"x")
    wait_for(lambda: watcher.tick(101.0 + 2 * CHECK_S) and watcher.settling, 60, "the event of the new file")
    watcher.tick(103.0 + 2 * CHECK_S)
    assert notes.paths == [str(root / "a.jpg")]


def go_deaf(watcher: Watcher) -> None:
    """Let no event arrive any more, while every thread lives."""
    for root in watcher.roots:
        root._listening._events._inbox.dispatch = lambda event: None  # type: ignore[method-assign]


def test_rescan_finds_what_no_event_told_of(stepped: tuple[Watcher, Notes, Path]) -> None:
    watcher, notes, root = stepped
    root.mkdir()
    watcher.tick(100.0)
    go_deaf(watcher)
    (root / "a.jpg").write_bytes(b"x")
    watcher.tick(150.0)
    assert watcher.settling == 0
    watcher.tick(161.0)
    watcher.tick(163.0)
    assert notes.paths == [str(root / "a.jpg")]


@pytest.mark.parametrize("which", ["observer", "emitter", "reader"])
def test_events_of_which_a_thread_died_are_started_anew(stepped: tuple[Watcher, Notes, Path], which: str) -> None:
    watcher, notes, root = stepped
    root.mkdir()
    watcher.tick(100.0)
    observer = watcher.roots[0]._listening._events._observer
    threads = list(threads_of(observer))
    dead = {"observer": threads[0], "emitter": threads[1], "reader": threads[2]}[which]
    dead.stop()  # type: ignore[attr-defined]
    dead.join(60)
    (root / "missed.jpg").write_bytes(b"x")
    watcher.tick(100.0 + CHECK_S)
    assert watcher.roots[0]._listening._events._observer is not observer
    watcher.tick(102.0 + CHECK_S)
    (root / "heard.jpg").write_bytes(b"x")
    wait_for(lambda: watcher.tick(103.0 + CHECK_S) and watcher.settling, 60, "the event of the new file")
    watcher.tick(105.0 + CHECK_S)
    assert notes.paths == [str(root / "missed.jpg"), str(root / "heard.jpg")]


def test_event_that_cannot_be_read_ends_nothing(stepped: tuple[Watcher, Notes, Path]) -> None:
    watcher, notes, root = stepped
    root.mkdir()
    watcher.tick(100.0)
    observer = watcher.roots[0]._listening._events._observer
    (emitter,) = observer.emitters
    broken = FileCreatedEvent("a.jpg")
    broken.src_path = None  # type: ignore[assignment]
    observer.event_queue.put((broken, emitter.watch))
    (root / "a.jpg").write_bytes(b"x")
    wait_for(lambda: watcher.tick(101.0) and watcher.settling, 60, "the event of the new file")
    assert watcher.roots[0]._listening._events.is_alive()
    watcher.tick(103.0)
    assert notes.paths == [str(root / "a.jpg")]
