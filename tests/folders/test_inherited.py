"""`.florence.yaml` in a watched folder: found, changed, removed, wrong and mended; the watcher's steps by hand."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from florence_daemon.config import FolderConfig, ModelConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import ConfigError
from florence_daemon.folders.health import OK
from florence_daemon.folders.inherited import MAX_BYTES, Inherited
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.needs import Needs
from florence_daemon.folders.records import making_of
from florence_daemon.folders.root import CHECK_S
from florence_daemon.folders.watch import Watcher
from florence_daemon.intake import FolderIntake
from florence_daemon.overrides import Settings
from florence_daemon.queue import Image, JobQueue
from tests.conftest import wait_for

TXT = (OutputConfig(prompt="CAPTION", ext="txt"),)


def say(directory: Path, text: str | None) -> None:
    """Write the directory's settings as if that were long ago; None removes them."""
    path = directory / ".florence.yaml"
    if text is None:
        path.unlink()
        return
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1e9, 1e9))


class Folder:
    """A folder, and a watcher over it that the test steps; nobody takes from its queue unless the test does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.queue = JobQueue(10)
        ledger = Ledger()
        self.intake = FolderIntake(self.queue, ledger, Needs(ledger, partial(making_of, ModelConfig())))
        self.now_s = 100.0
        config = FolderConfig(path=path, outputs=TXT, settle_s=0.0)
        self.watcher = Watcher([config], self.intake, lambda: self.now_s, jitter=lambda: 0.5)

    def drop(self, name: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_bytes(b"x")

    def step(self, seconds: float = 0.0) -> None:
        self.now_s += seconds
        self.watcher.tick(self.now_s)

    def step_until_waiting(self, *expected: str) -> None:
        """Step until exactly these sidecars wait to be made: events take their time."""
        wanted = sorted(expected)
        wait_for(lambda: self.step(0.01) or self.waiting() == wanted, 60, f"{wanted}, not {self.waiting()}")

    def images(self) -> list[Image]:
        return [job.image for job in self.queue._waiting[1] if job.image is not None]  # type: ignore[index]

    def waiting(self) -> list[str]:
        """The sidecars that wait to be made."""
        return sorted(
            os.path.splitext(os.path.relpath(image.path, self.path))[0] + output.ending
            for image in self.images()
            for output in image.outputs
        )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "in").mkdir()
    made = Folder(tmp_path / "in")
    yield made
    made.watcher.close()


def test_file_counts_for_its_directory_and_those_below(folder: Folder) -> None:
    for name in ("a.jpg", "sub/b.jpg", "sub/deep/er/c.jpg", "other/d.jpg"):
        folder.drop(name)
    say(folder.path / "sub", "outputs: [{prompt: OCR, ext: ocr}]\noverwrite: stale\n")
    say(folder.path / "sub" / "deep", "prefix: 'ohwx, '\n")
    folder.step()
    assert folder.waiting() == ["a.txt", "other/d.txt", "sub/b.ocr", "sub/deep/er/c.ocr"]
    by_name = {os.path.basename(image.path): image for image in folder.images()}
    assert (by_name["b.jpg"].overwrite, by_name["b.jpg"].outputs[0].prefix) == ("stale", "")
    assert (by_name["c.jpg"].overwrite, by_name["c.jpg"].outputs[0].prefix) == ("stale", "ohwx, ")
    assert by_name["a.jpg"].overwrite == "never"


def test_folder_that_inherits_nothing_takes_no_notice(tmp_path: Path) -> None:
    say(tmp_path / "sub", "prefix: [")
    base = Settings(FolderConfig(path=tmp_path, inherit=False))
    assert Inherited(str(tmp_path)).settings(base, str(tmp_path / "sub")) == base


def test_patterns_leave_pictures_out(folder: Folder) -> None:
    say(folder.path, "exclude: ['raw/*', 'no*']\n")
    for name in ("a.jpg", "no.jpg", "raw/b.jpg", "sub/raw.jpg"):
        folder.drop(name)
    folder.step()
    assert folder.waiting() == ["a.txt", "sub/raw.txt"]


def test_wrong_file_keeps_its_pictures_waiting_and_no_others_and_is_told(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    say(folder.path / "sub", "outptus: []\n")
    for name in ("a.jpg", "sub/b.jpg", "sub/deep/c.jpg"):
        folder.drop(name)
    folder.step()
    folder.step_until_waiting("a.txt")
    health = folder.watcher.health()
    file = folder.path / "sub" / ".florence.yaml"
    assert health.state == "degraded"
    assert f"{file}:1: outptus: unknown setting; did you mean outputs?; the pictures there wait" in health.reason
    assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 1
    say(folder.path / "sub", "suffix: '!'\n")
    folder.step_until_waiting("a.txt", "sub/b.txt", "sub/deep/c.txt")
    assert folder.watcher.health() == OK


def test_wrong_combination_is_told_too(folder: Folder) -> None:
    say(folder.path, "outputs: [{prompt: CAPTION, ext: txt}]\n")
    say(folder.path / "sub", "num_beams: 0\n")
    folder.drop("sub/b.jpg")
    folder.step()
    assert folder.waiting() == []
    assert "sub/.florence.yaml:1: num_beams: 0 is out of range" in folder.watcher.health().reason


def test_file_that_comes_later_counts_for_what_waits_and_what_comes(folder: Folder) -> None:
    folder.drop("sub/a.jpg")
    folder.step()
    assert folder.waiting() == ["sub/a.txt"]
    say(folder.path / "sub", "outputs: [{prompt: OCR, ext: ocr}]\n")
    folder.step_until_waiting("sub/a.ocr")
    folder.drop("sub/b.jpg")
    folder.step_until_waiting("sub/a.ocr", "sub/b.ocr")


def test_file_that_is_removed_counts_no_more(folder: Folder) -> None:
    say(folder.path / "sub", "outputs: [{prompt: OCR, ext: ocr}]\n")
    folder.drop("sub/a.jpg")
    folder.step()
    assert folder.waiting() == ["sub/a.ocr"]
    say(folder.path / "sub", None)
    folder.step(CHECK_S)
    folder.step_until_waiting("sub/a.txt")


def test_change_that_no_event_told_of_is_found_by_a_look(folder: Folder) -> None:
    say(folder.path / "sub", "outputs: [{prompt: OCR, ext: ocr}]\n")
    folder.drop("sub/a.jpg")
    folder.step()
    folder.watcher.roots[0]._listening._events._inbox.dispatch = lambda event: None  # type: ignore[method-assign]
    say(folder.path / "sub", "outputs: [{prompt: OCR, ext: other}]\n")
    folder.step(CHECK_S)
    folder.step()
    assert folder.waiting() == ["sub/a.other"]


def test_picture_that_is_just_being_taken_gets_what_counts_by_then(folder: Folder) -> None:
    folder.drop("a.jpg")
    config = folder.watcher.roots[0].folder
    assert folder.intake.needs(config, str(folder.path / "a.jpg"))
    say(folder.path, "outputs: [{prompt: OCR, ext: ocr}]\n")
    folder.step()
    assert folder.waiting() == ["a.ocr"]


def test_file_that_changed_a_moment_ago_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / ".florence.yaml"
    file.write_text("prefix: a\n")
    now = [file.stat().st_mtime + 0.5]
    inherited = Inherited(str(tmp_path), now_s=lambda: now[0])
    base = Settings(FolderConfig(path=tmp_path, outputs=TXT))
    with pytest.raises(ConfigError, match="changed a moment ago"):
        inherited.settings(base, str(tmp_path / "sub"), is_first=True)
    assert inherited.look(str(tmp_path / "sub"))
    assert inherited.health() == OK
    now[0] += 1.0
    inherited.look_around()
    assert inherited.renewed() == [str(tmp_path / "sub")]
    assert inherited.settings(base, str(tmp_path / "sub")).outputs[0].prefix == "a"
    assert inherited.renewed() == []


def test_clock_that_is_behind_the_file_waits_for_nothing(tmp_path: Path) -> None:
    (tmp_path / ".florence.yaml").write_text("prefix: a\n")
    inherited = Inherited(str(tmp_path), now_s=lambda: time.time() - 3600)
    base = Settings(FolderConfig(path=tmp_path, outputs=TXT))
    assert inherited.settings(base, str(tmp_path)).outputs[0].prefix == "a"


@pytest.mark.parametrize("kind", ["link", "directory", "pipe", "large", "behind a link"])
def test_what_is_no_file_of_its_own_is_not_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".florence.yaml").write_text("prefix: secret\n")
    root = tmp_path / "in"
    root.mkdir()
    file, directory = root / ".florence.yaml", root
    if kind == "link":
        file.symlink_to(tmp_path / "elsewhere" / ".florence.yaml")
    elif kind == "directory":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "large":
        file.write_text("#" * MAX_BYTES + "\n")
    else:
        directory = root / "sub"
        directory.symlink_to(tmp_path / "elsewhere")
    inherited = Inherited(str(root), fresh_s=0.0)
    with pytest.raises(ConfigError):
        inherited.settings(Settings(FolderConfig(path=root, outputs=TXT)), str(directory))
    assert inherited.health().state == "degraded"


def test_many_wrong_files_are_told_in_one_line(tmp_path: Path) -> None:
    inherited = Inherited(str(tmp_path), fresh_s=0.0)
    base = Settings(FolderConfig(path=tmp_path, outputs=TXT))
    for number in range(3):
        say(tmp_path / str(number), "prefix: [")
        with pytest.raises(ConfigError):
            inherited.settings(base, str(tmp_path / str(number)))
    assert "(and 2 more such files)" in inherited.health().reason


def test_folder_that_is_left_puts_nothing_into_the_queue_any_more(folder: Folder) -> None:
    folder.drop("a.jpg")
    old = folder.watcher.roots[0]
    folder.drop("b.jpg")
    folder.watcher.renew([])
    old.tick(folder.now_s)
    assert folder.waiting() == []
    folder.watcher.renew([FolderConfig(path=folder.path, outputs=TXT, settle_s=0.0)])
    folder.step()
    assert folder.waiting() == ["a.txt", "b.txt"]
    old.close()
