"""The latest pictures and the edits of a person: what is shown, what is written, what is left alone."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from florence_daemon import gallery as room
from florence_daemon.config import FolderConfig, ModelConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import QueueFull, SidecarChanged, UnknownPath
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.needs import Needs
from florence_daemon.folders.records import Written, digest_of, making_of
from florence_daemon.folders.settle import Stamp, stamp_of
from florence_daemon.folders.watch import Watcher
from florence_daemon.gallery import Gallery
from florence_daemon.http.pictures import Shown
from florence_daemon.intake import FolderIntake
from florence_daemon.queue import JobQueue
from florence_daemon.thumbnails import Thumbnails

CAPTION = OutputConfig(prompt="CAPTION", ext="txt")
TAGS = OutputConfig(prompt="GENERATE_TAGS", ext="tag")
OUTPUTS = (CAPTION, TAGS)
MAKES = partial(making_of, ModelConfig())


class Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


class Rooms:
    """A watched folder with a ledger and a gallery; `caption` does as the daemon does after an answer."""

    def __init__(self, folder: Path, state: Path | None = None, overwrite: str = "never") -> None:
        self.folder = folder
        self.ledger = Ledger(state, Clock())
        intake = FolderIntake(JobQueue(8), self.ledger, Needs(self.ledger, MAKES))
        self.watcher = Watcher([FolderConfig(folder, outputs=OUTPUTS, overwrite=overwrite)], intake, time.monotonic)
        self.thumbnails = Thumbnails(folder.parent / "thumbnails")
        self.gallery = Gallery(self.ledger, self.watcher, MAKES, self.thumbnails)

    def caption(self, name: str, text: str = "a caption", output: OutputConfig = CAPTION) -> str:
        path = str(self.folder / name)
        if not os.path.lexists(path):
            Path(path).write_bytes(b"stands for a picture")
        stamp = stamp_of(path)
        assert stamp is not None
        content = (text + "\n").encode()
        written = Written(output.ending, digest_of(content), stamp.size_bytes, stamp.mtime_ns, None, MAKES(output))
        self.ledger.writing(path, [written])
        Path(path).with_suffix(output.ending).write_bytes(content)
        self.ledger.written(path, [written])
        return path

    def due(self, path: str, overwrite: str, model: str = "another/model") -> list[str]:
        needs = Needs(self.ledger, partial(making_of, ModelConfig(name=model)))
        return [output.ext for output in needs.due(path, OUTPUTS, overwrite, self.ledger.entry(path))]

    def close(self) -> None:
        self.thumbnails.close()
        self.ledger.close()


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Rooms]:
    (tmp_path / "pictures").mkdir()
    opened = Rooms(tmp_path / "pictures")
    yield opened
    opened.close()


def text_of(shown: Shown, ext: str = ".txt") -> str:
    return next(caption.text for caption in shown.captions if caption.ext == ext)


def version_of(shown: Shown, ext: str = ".txt") -> str | None:
    return next(caption.version for caption in shown.captions if caption.ext == ext)


def test_latest_come_first_as_they_are_now_and_bounded(rooms: Rooms) -> None:
    paths = [rooms.caption(f"{number}.jpg", f"caption {number}") for number in range(5)]
    assert [shown.path for shown in rooms.gallery.latest(3)] == paths[:1:-1]
    rooms.caption("0.jpg", "again")
    Path(paths[4]).unlink()
    rooms.folder.joinpath("3.txt").write_text("by hand\n")
    latest = rooms.gallery.latest(10)
    assert [shown.path for shown in latest] == [paths[0], paths[3], paths[2], paths[1]]
    assert [text_of(shown) for shown in latest] == ["again", "by hand", "caption 2", "caption 1"]
    assert [shown.captions[0].by_person for shown in latest] == [False, True, False, False]
    assert latest[0].captioned_s is not None


def test_failed_images_and_those_of_other_folders_are_not_among_the_latest(rooms: Rooms, tmp_path: Path) -> None:
    rooms.caption("good.jpg")
    failed = rooms.caption("failed.jpg")
    rooms.ledger.failed(failed, "is truncated", stamp_of(failed))
    refused = str(rooms.folder / "refused.jpg")
    Path(refused).write_bytes(b"no picture")
    rooms.ledger.failed(refused, "is no picture", stamp_of(refused))
    rooms.ledger.settled(refused)
    (tmp_path / "elsewhere").mkdir()
    rooms.caption("../elsewhere/other.jpg")
    assert [os.path.basename(shown.path) for shown in rooms.gallery.latest(10)] == ["good.jpg"]


def test_latest_are_the_same_after_a_restart(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    before = Rooms(tmp_path / "pictures", tmp_path / "state")
    before.caption("a.jpg", "said before")
    before.close()
    after = Rooms(tmp_path / "pictures", tmp_path / "state")
    assert [text_of(shown) for shown in after.gallery.latest(10)] == ["said before"]
    after.close()


def test_all_captions_are_shown_and_what_is_none_is_not(rooms: Rooms) -> None:
    path = rooms.caption("a.jpg", "tags, more tags", TAGS)
    rooms.folder.joinpath("a.txt").write_bytes(b"\xff\xfe not text")
    for ending in ("json", "JSON", "xmp", "XMP"):
        rooms.caption("a.jpg", "{}", OutputConfig(prompt="CAPTION", ext=ending))
    captions = {caption.ext: caption for caption in rooms.gallery.picture(path).captions}
    assert set(captions) == {".txt", ".tag"}
    assert captions[".tag"].text == "tags, more tags"
    assert (captions[".txt"].problem, captions[".txt"].version) == ("it is not UTF-8", None)
    rooms.folder.joinpath("a.txt").write_bytes(b"x" * 100_000)
    large = next(caption for caption in rooms.gallery.picture(path).captions if caption.ext == ".txt")
    assert large.problem == "it cannot be read: is larger than 65,536 bytes"


def test_edit_is_written_whole_and_shown(rooms: Rooms) -> None:
    path = rooms.caption("a.jpg", "the model's words")
    seen = version_of(rooms.gallery.picture(path))
    shown = rooms.gallery.edit(path, ".txt", "  mine,\r\nin two lines\n\n", seen)
    assert rooms.folder.joinpath("a.txt").read_bytes() == b"mine,\nin two lines\n"
    assert text_of(shown) == "mine,\nin two lines"
    assert shown.captions[0].by_person
    assert sorted(os.listdir(rooms.folder)) == ["a.jpg", "a.txt"]


@pytest.mark.parametrize("text", ["a person's words", "the model's words"])
def test_what_a_person_saved_is_never_made_anew_but_by_always(rooms: Rooms, text: str) -> None:
    path = rooms.caption("a.jpg", "the model's words")
    rooms.caption("a.jpg", "tags", TAGS)
    assert rooms.due(path, "stale") == ["txt", "tag"]
    rooms.gallery.edit(path, ".txt", text, version_of(rooms.gallery.picture(path)))
    assert rooms.due(path, "never") == []
    assert rooms.due(path, "stale") == ["tag"]
    assert rooms.due(path, "always") == ["txt", "tag"]
    assert rooms.gallery.picture(path).captions[0].by_person


def test_edit_stays_under_always_until_something_changes(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    rooms = Rooms(tmp_path / "pictures", overwrite="always")
    path = rooms.caption("a.jpg", "tags", TAGS)
    rooms.folder.joinpath("a.txt").write_text("there before the program came\n")
    for text in ("mine", "mine again"):
        rooms.gallery.edit(path, ".txt", text, version_of(rooms.gallery.picture(path)))
        assert rooms.due(path, "always", ModelConfig().name) == []
    assert rooms.due(path, "always", "another/model") == ["txt", "tag"]
    rooms.close()


def test_what_is_to_be_added_to_an_edited_file_is_still_added(rooms: Rooms) -> None:
    path = rooms.caption("a.jpg", "tags", TAGS)
    rooms.folder.joinpath("a.txt").write_text("there before the program came\n")
    rooms.gallery.edit(path, ".txt", "mine", version_of(rooms.gallery.picture(path)))
    assert rooms.due(path, "append") == ["txt"]
    rooms.gallery.edit(path, ".tag", "my tags", version_of(rooms.gallery.picture(path), ".tag"))
    assert rooms.due(path, "append") == ["txt"]


def test_edit_of_what_was_changed_meanwhile_loses_neither(rooms: Rooms) -> None:
    path = rooms.caption("a.jpg", "the model's words")
    seen = version_of(rooms.gallery.picture(path))
    rooms.folder.joinpath("a.txt").write_text("somebody else's\n")
    with pytest.raises(SidecarChanged, match=r"a\.txt: was changed meanwhile"):
        rooms.gallery.edit(path, ".txt", "mine", seen)
    assert rooms.folder.joinpath("a.txt").read_text() == "somebody else's\n"
    rooms.folder.joinpath("a.txt").unlink()
    with pytest.raises(SidecarChanged):
        rooms.gallery.edit(path, ".txt", "mine", seen)
    assert not rooms.folder.joinpath("a.txt").exists()
    assert text_of(rooms.gallery.edit(path, ".txt", "mine", None)) == "mine"
    with pytest.raises(SidecarChanged):
        rooms.gallery.edit(path, ".txt", "mine, blindly", None)


def test_only_sidecars_of_known_images_in_watched_folders_are_written(rooms: Rooms, tmp_path: Path) -> None:
    path = rooms.caption("a.jpg")
    (tmp_path / "elsewhere").mkdir()
    outside = rooms.caption("../elsewhere/other.jpg")
    unknown = str(rooms.folder / "unknown.jpg")
    Path(unknown).write_bytes(b"nobody told of it")
    around = str(rooms.folder / ".." / "elsewhere" / "other.jpg")
    for other in (outside, os.path.normpath(outside), unknown, around, "relative.jpg", str(rooms.folder)):
        with pytest.raises(UnknownPath):
            rooms.gallery.edit(other, ".txt", "mine", None)
        with pytest.raises(UnknownPath):
            rooms.gallery.thumbnail(other)
        with pytest.raises(UnknownPath):
            rooms.gallery.picture(other)
    for ext in (".py", ".jpg", ".json", "txt"):
        with pytest.raises(UnknownPath):
            rooms.gallery.edit(path, ext, "mine", None)
    assert sorted(os.listdir(rooms.folder)) == ["a.jpg", "a.txt", "unknown.jpg"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets few people make links")
def test_nothing_is_read_or_written_through_a_link(rooms: Rooms, tmp_path: Path) -> None:
    path = rooms.caption("a.jpg")
    rooms.folder.joinpath("a.txt").unlink()
    (tmp_path / "secret.txt").write_text("secret")
    rooms.folder.joinpath("a.txt").symlink_to(tmp_path / "secret.txt")
    (caption,) = rooms.gallery.picture(path).captions
    assert (caption.text, caption.version) == ("", None)
    assert caption.problem
    with pytest.raises(SidecarChanged):
        rooms.gallery.edit(path, ".txt", "mine", None)
    assert (tmp_path / "secret.txt").read_text() == "secret"
    (rooms.folder / "sub").mkdir()
    inner = rooms.caption("sub/b.jpg")
    (rooms.folder / "sub").rename(tmp_path / "moved")
    (rooms.folder / "sub").symlink_to(tmp_path / "moved")
    with pytest.raises(UnknownPath, match="cannot be opened"):
        rooms.gallery.picture(inner)
    assert [os.path.basename(shown.path) for shown in rooms.gallery.latest(9)] == ["a.jpg"]


def test_looks_that_hang_do_not_take_every_thread(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rooms.caption("a.jpg")
    monkeypatch.setattr(room, "WAIT_S", 0.05)
    hanging, go_on = threading.Semaphore(0), threading.Event()

    def hang(*_: object) -> Stamp | None:
        hanging.release()
        go_on.wait(60)
        return None

    monkeypatch.setattr(room.Directory, "stamp_of", hang)
    threads = [threading.Thread(target=rooms.gallery.latest, args=[9]) for _ in range(room.MOST_LOOKING)]
    for thread in threads:
        thread.start()
    assert all(hanging.acquire(timeout=60) for _ in threads)
    with pytest.raises(QueueFull, match="a share that hangs"):
        rooms.gallery.picture(path)
    go_on.set()
    for thread in threads:
        thread.join(60)
    monkeypatch.undo()
    assert rooms.gallery.picture(path).path == path
