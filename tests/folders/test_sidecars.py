"""What is written beside an image, and what is never touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from florence_daemon.config import DEFAULT_OUTPUTS, OutputConfig
from florence_daemon.errors import SidecarError
from florence_daemon.folders import sidecars
from florence_daemon.folders.sidecars import render, sidecar_path, write_all, write_atomically

CAPTION = OutputConfig(prompt="CAPTION", ext="txt")
TAGS = OutputConfig(prompt="GENERATE_TAGS", ext=".tag")


@pytest.mark.parametrize(
    ("image", "expected"),
    [("/p/a.jpg", "/p/a.txt"), ("/p/a.b.jpg", "/p/a.b.txt"), ("/p.q/a.JPEG", "/p.q/a.txt"), ("/p/ü .png", "/p/ü .txt")],
)
def test_last_suffix_is_replaced(image: str, expected: str) -> None:
    assert sidecar_path(image, CAPTION) == expected


def test_only_missing_outputs_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    assert sidecars.missing_outputs(str(tmp_path / "a.jpg"), DEFAULT_OUTPUTS) == DEFAULT_OUTPUTS[1:]


def test_dangling_link_counts_as_a_sidecar_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "elsewhere")
    assert sidecars.missing_outputs(str(tmp_path / "a.jpg"), (CAPTION,)) == ()


def test_caption_is_one_line_that_ends_in_a_newline() -> None:
    assert render(CAPTION, " a cat \n\n on a mat ") == "a cat, on a mat\n"
    assert render(CAPTION, "A cat.\nfur, paws") == "A cat. fur, paws\n"


def test_boxes_become_json() -> None:
    assert render(OutputConfig(prompt="OD", ext="json"), {"bboxes": [], "labels": ["é"]}) == (
        '{"bboxes": [], "labels": ["é"]}\n'
    )


@pytest.mark.parametrize(("output", "answer"), [(CAPTION, " \n "), (CAPTION, "")])
def test_empty_answer_is_an_error_not_a_file(output: OutputConfig, answer: str) -> None:
    with pytest.raises(SidecarError, match="was empty"):
        render(output, answer)


def test_existing_sidecar_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    image = str(tmp_path / "a.jpg")
    assert write_all(image, [(CAPTION, "theirs\n"), (TAGS, "tag\n")]) == [str(tmp_path / "a.tag")]
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_overwriting_replaces_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a much longer text than the new one")
    write_all(str(tmp_path / "a.jpg"), [(CAPTION, "new\n")], overwrite=True)
    assert (tmp_path / "a.txt").read_bytes() == b"new\n"


def test_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    write_all(str(tmp_path / "a.jpg"), [(CAPTION, "one\n")])
    write_all(str(tmp_path / "a.jpg"), [(CAPTION, "two\n")])
    write_all(str(tmp_path / "a.jpg"), [(CAPTION, "three\n")], overwrite=True)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_sidecar_has_the_mode_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("x")
    write_all(str(tmp_path / "a.jpg"), [(CAPTION, "one\n")])
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_file_system_without_hard_links_gets_its_sidecar_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = str(tmp_path / "a.txt")
    assert write_atomically(path, b"one\n", overwrite=False)
    assert not write_atomically(path, b"two\n", overwrite=False)
    assert os.listdir(tmp_path) == ["a.txt"]
    assert Path(path).read_bytes() == b"one\n"


def test_longest_name_gets_its_sidecar(tmp_path: Path) -> None:
    image = str(tmp_path / ("x" * 251 + ".jpg"))
    Path(image).write_bytes(b"x")
    assert write_all(image, [(CAPTION, "one\n")]) == [image[:-4] + ".txt"]


def test_folder_that_is_gone_is_an_error_that_names_the_sidecar(tmp_path: Path) -> None:
    with pytest.raises(SidecarError, match=r"gone/a.txt: cannot be written: No such file"):
        write_all(str(tmp_path / "gone" / "a.jpg"), [(CAPTION, "one\n")])


def test_images_that_share_a_sidecar_have_one_owner(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.WEBP", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    assert sidecars.image_with_same_sidecar(str(tmp_path / "a.WEBP")) is None
    assert sidecars.image_with_same_sidecar(str(tmp_path / "a.jpg")) == str(tmp_path / "a.WEBP")
    assert sidecars.image_with_same_sidecar(str(tmp_path / "a.png")) == str(tmp_path / "a.WEBP")
    assert sidecars.image_with_same_sidecar(str(tmp_path / "b.png")) is None
