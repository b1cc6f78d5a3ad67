"""Which files of a folder are pictures to caption."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from florence_daemon.config import FolderConfig
from florence_daemon.folders.names import is_image_name
from florence_daemon.folders.scan import find_images


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
    [".a.jpg", "~a.jpg", "a.jpg.part", "a.jpg.crdownload", "a.jpg.tmp", "a.txt", "a.tag", "jpg", ".jpg", "a.tmp.jpg"],
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


def test_include_and_exclude_match_names_and_relative_paths(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "a.png", "2024/b.jpg", "2025/c.jpg", "2025/skip.jpg")
    assert found(tmp_path, include=("*.jpg",)) == ["a.jpg", "2024/b.jpg", "2025/c.jpg", "2025/skip.jpg"]
    assert found(tmp_path, include=("2025/*",), exclude=("skip*",)) == ["2025/c.jpg"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "in/a.jpg", "out/secret.jpg")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "out" / "secret.jpg")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "out")
    assert found(tmp_path / "in") == ["a.jpg"]


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    make(tmp_path, name)
    assert found(tmp_path) == [name]


def test_folder_that_is_not_there_is_reported_not_raised(tmp_path: Path) -> None:
    errors: list[OSError] = []
    folder = FolderConfig(path=tmp_path / "none")
    assert list(find_images(folder, on_error=errors.append)) == []
    assert [type(error) for error in errors] == [FileNotFoundError]
