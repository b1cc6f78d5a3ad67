"""What is written beside an image, and what is never touched."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import DiskFull, FolderBlocked, SidecarError
from florence_daemon.folders.atomic import Directory
from florence_daemon.folders.sidecars import (
    check_names,
    images_beside,
    owner_in_another_case,
    sidecar_path,
    write_all,
)

CAPTION = OutputConfig(prompt="CAPTION", ext="txt")
TAGS = OutputConfig(prompt="GENERATE_TAGS", ext=".tag")


@pytest.mark.parametrize(
    ("image", "expected"),
    [("/p/a.jpg", "/p/a.txt"), ("/p/a.b.jpg", "/p/a.b.txt"), ("/p.q/a.JPEG", "/p.q/a.txt"), ("/p/ü .png", "/p/ü .txt")],
)
def test_last_suffix_is_replaced(image: str, expected: str) -> None:
    assert sidecar_path(image, CAPTION) == expected


def write(directory: Path, *texts: tuple[OutputConfig, str], replace: bool = False) -> list[OutputConfig]:
    with Directory(str(directory)) as opened:
        contents = [(output, text.encode()) for output, text in texts]
        return write_all(opened, "a.jpg", contents, lambda name, output: replace)


def test_existing_sidecar_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    assert write(tmp_path, (CAPTION, "theirs\n"), (TAGS, "tag\n")) == [TAGS]
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_only_the_sidecar_that_may_be_replaced_is_replaced_and_wholly(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a much longer text than the new one")
    (tmp_path / "a.tag").write_text("mine")
    with Directory(str(tmp_path)) as opened:
        written = write_all(
            opened, "a.jpg", [(CAPTION, b"new\n"), (TAGS, b"new\n")], lambda name, output: name == "a.txt"
        )
    assert written == [CAPTION]
    assert (tmp_path / "a.txt").read_bytes() == b"new\n"
    assert (tmp_path / "a.tag").read_text() == "mine"


def test_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path, (CAPTION, "one\n"))
    write(tmp_path, (CAPTION, "two\n"))
    write(tmp_path, (CAPTION, "three\n"), replace=True)
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EROFS, FolderBlocked),
        (errno.EACCES, FolderBlocked),
        (errno.ENOENT, SidecarError),
    ],
)
def test_error_tells_whether_the_folder_or_the_picture_is_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[SidecarError]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(Directory, "write", refuse)
    with pytest.raises(SidecarError, match=r"a.txt: cannot be written: ") as raised:
        write(tmp_path, (CAPTION, "new\n"), replace=True)
    assert type(raised.value) is kind
    assert (tmp_path / "a.txt").read_text() == "old"


def test_longest_name_gets_its_sidecar_unless_the_ending_makes_it_too_long(tmp_path: Path) -> None:
    image = "x" * 251 + ".jpg"
    (tmp_path / image).write_bytes(b"x")
    check_names(str(tmp_path / image), [CAPTION])
    with Directory(str(tmp_path)) as opened:
        assert write_all(opened, image, [(CAPTION, b"one\n")]) == [CAPTION]
    with pytest.raises(SidecarError, match=r"with \.caption its name is too long"):
        check_names(str(tmp_path / image), [CAPTION, OutputConfig(prompt="CAPTION", ext="caption")])


def test_images_that_share_a_sidecar_are_found_by_the_names_that_are_listed(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.WEBP", "b.png", "a.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert images_beside(str(tmp_path / "a.png")) == ["a.WEBP", "a.jpg"]
    assert images_beside(str(tmp_path / "b.png")) == []


def test_owner_of_a_sidecar_is_found_where_the_file_system_ignores_case(tmp_path: Path) -> None:
    for name in ("Pair.JPG", "Pair.txt", "pair.png", "PERSON.TXT", "person.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert owner_in_another_case(str(tmp_path / "pair.png"), [CAPTION]) == "Pair.JPG"
    assert owner_in_another_case(str(tmp_path / "person.jpg"), [CAPTION]) is None, "a person wrote it"
    (tmp_path / "pair.txt").write_bytes(b"x")
    assert owner_in_another_case(str(tmp_path / "pair.png"), [CAPTION]) is None, "case counts here"
