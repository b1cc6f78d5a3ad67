"""Which files of a folder are pictures to caption."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from florence_daemon.config import FolderConfig
from florence_daemon.folders.names import is_image_name, is_wanted
from florence_daemon.folders.scan import find_images, list_directories


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def found(root: Path, **settings: object) -> list[str]:
    folder = FolderConfig(path=root, **settings)  # type: ignore[arg-type]
    return [os.path.relpath(path, root) for path in find_images(folder)]


@pytest.mark.parametrize("name", ["a.jpg", "A.JPEG", "b.c.png", "x.TIF", "ä ö.webp", "-.gif", "x.avif", "x.heic"])
def test_picture_names_count(name: str) -> None:
    assert is_image_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(".a.jpg", "~a.jpg", "a.txt", "a.tag", "jpg", ".jpg"),
        *("a.jpg.part", "a.jpg.crdownload", "a.jpg.download", "a.jpg.tmp", "a.jpg.filepart", "a.tmp.jpg", "a.part.jpg"),
        *(".a.jpg.Xy12Ab", ".syncthing.a.jpg.tmp", "~syncthing~a.jpg.tmp", ".florence-0123456789ab-77.jpg"),
    ],
)
def test_temporary_names_dotfiles_and_sidecars_do_not(name: str) -> None:
    assert not is_image_name(name)


def test_folders_are_walked_in_the_order_of_names(tmp_path: Path) -> None:
    make(tmp_path, "b.jpg", "a.jpg", "sub/d.jpg", "sub/c.jpg", "another/e.jpg", "notes.txt")
    assert found(tmp_path) == ["a.jpg", "b.jpg", "another/e.jpg", "sub/c.jpg", "sub/d.jpg"]


def test_recursion_can_be_off(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "sub/b.jpg")
    assert found(tmp_path, recursive=False) == ["a.jpg"]


def test_hidden_directories_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", ".thumbnails/b.jpg", "sub/.cache/c.jpg")
    assert found(tmp_path) == ["a.jpg"]


@pytest.mark.parametrize("name", ["a.jpg.download", "@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "~tmp"])
def test_directories_of_systems_and_unfinished_downloads_are_left_out(tmp_path: Path, name: str) -> None:
    make(tmp_path, "a.jpg", f"{name}/b.jpg", f"sub/{name}/c.jpg")
    assert found(tmp_path) == ["a.jpg"]
    assert not is_wanted(FolderConfig(path=tmp_path), str(tmp_path / name / "b.jpg"))


def test_part_in_the_middle_of_a_name_is_a_name_like_any_other(tmp_path: Path) -> None:
    make(tmp_path, "holiday.part.2.jpg", "The download (1).jpg", "tmp.jpg")
    assert len(found(tmp_path)) == 3


def test_listing_has_every_name_of_the_directory(tmp_path: Path) -> None:
    make(tmp_path, "b.jpg", "a.jpg", "a.txt", ".hidden", "sub/c.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    top, sub = list_directories(FolderConfig(path=tmp_path))
    assert (top.directory, top.images) == (str(tmp_path), ("a.jpg", "b.jpg"))
    assert top.names == {"a.jpg", "b.jpg", "a.txt", ".hidden", "sub", "link.jpg"}
    assert (sub.directory, sub.images) == (str(tmp_path / "sub"), ("c.jpg",))


def test_directories_that_others_see_to_are_not_read(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "other/b.jpg", "other/deep/c.jpg")
    listings = list_directories(FolderConfig(path=tmp_path), leave_out=[str(tmp_path / "other")])
    assert [listing.directory for listing in listings] == [str(tmp_path)]


def test_include_and_exclude_match_names_and_relative_paths(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "a.png", "2024/b.jpg", "2025/c.jpg", "2025/skip.jpg")
    assert found(tmp_path, include=("*.jpg",)) == ["a.jpg", "2024/b.jpg", "2025/c.jpg", "2025/skip.jpg"]
    assert found(tmp_path, include=("2025/*",), exclude=("skip*",)) == ["2025/c.jpg"]


def test_directory_that_became_a_link_since_its_parent_was_read_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, "root/a.jpg", "root/sub/b.jpg", "outside/c.jpg", "outside/deep/d.jpg")
    folder = FolderConfig(path=tmp_path / "root")
    listings = list_directories(folder)
    next(listings)
    (tmp_path / "root" / "sub").rename(tmp_path / "sub")
    (tmp_path / "root" / "sub").symlink_to(tmp_path / "outside")
    assert list(listings) == []
    assert list(list_directories(folder, str(tmp_path / "root" / "sub" / "deep"))) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "in/a.jpg", "out/secret.jpg")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "out" / "secret.jpg")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "out")
    assert found(tmp_path / "in") == ["a.jpg"]


@pytest.mark.parametrize(
    "raw",
    [b"caf\xe9.jpg", b"two\nlines.jpg", b"x" * 251 + b".jpg", "e\u0301\u0302.jpg".encode(), b"\x01\x7f.jpg", b" .jpg"],
)
def test_odd_names_are_found(tmp_path: Path, raw: bytes) -> None:
    name = os.fsdecode(raw)
    make(tmp_path, name)
    assert found(tmp_path) == [name]


def test_folder_that_is_not_there_is_reported_not_raised(tmp_path: Path) -> None:
    errors: list[OSError] = []
    folder = FolderConfig(path=tmp_path / "none")
    assert list(find_images(folder, on_error=errors.append)) == []
    assert [type(error) for error in errors] == [FileNotFoundError]
