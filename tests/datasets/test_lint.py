"""What a trainer would stumble over, each named once and by its kind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from florence_daemon.datasets.lint import KINDS, Finding, Lint
from florence_daemon.lint_command import LISTED
from tests.conftest import run_command
from tests.datasets.trees import tree_of
from tests.pictures import jpeg, rotated_jpeg


def lint(folder: Path, *suffixes: str, max_tokens: int = 75) -> dict[str, tuple[str, str]]:
    """By kind, the one finding's file name and detail."""
    found: dict[str, tuple[str, str]] = {}
    for finding in Lint(tree_of(folder), suffixes or (".txt",), max_tokens).findings():
        assert finding.kind not in found
        found[finding.kind] = (os.path.basename(finding.path), finding.detail)
    return found


def write(folder: Path, name: str, caption: str | bytes | None = "a cat", picture: bytes | None = None) -> None:
    (folder / name).write_bytes(jpeg() if picture is None else picture)
    if caption is not None:
        content = caption if isinstance(caption, bytes) else caption.encode()
        (folder / name).with_suffix(".txt").write_bytes(content)


def test_good_folder_has_nothing_to_be_found(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "a cat\n")
    (tmp_path / "notes.md").write_text("no caption, and nobody takes it for one")
    assert lint(tmp_path) == {}


@pytest.mark.parametrize(
    ("caption", "kind", "detail"),
    [
        (None, "missing", "no a.txt"),
        ("", "empty", "is empty"),
        ("one\ntwo\n", "multi-line", "2 lines"),
        (b"\xef\xbb\xbfa cat", "bom", ""),
        (b"Gr\xfcn", "not-utf-8", "is not UTF-8: byte 0xfc at 2"),
    ],
)
def test_faulty_caption_is_found(tmp_path: Path, caption: str | bytes | None, kind: str, detail: str) -> None:
    write(tmp_path, "good.jpg")
    write(tmp_path, "a.jpg", caption)
    assert lint(tmp_path) == {kind: ("a.jpg" if caption is None else "a.txt", detail)}


@pytest.mark.parametrize(
    ("words", "kind"),
    [(75, None), (76, "over-75-tokens"), (225, "over-75-tokens"), (226, "over-225-tokens"), (600, "over-512-tokens")],
)
def test_caption_is_too_long_by_the_largest_limit_that_it_is_over(tmp_path: Path, words: int, kind: str | None) -> None:
    write(tmp_path, "a.jpg", "cat " * words)
    assert list(lint(tmp_path)) == ([] if kind is None else [kind])


def test_trainer_that_takes_more_is_told_of_less(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "cat " * 100)
    assert lint(tmp_path, max_tokens=75) == {"over-75-tokens": ("a.txt", "100 CLIP tokens")}
    assert lint(tmp_path, max_tokens=225) == {}


def test_pictures_that_share_a_caption_are_one_finding(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp"):
        write(tmp_path, name)
    assert lint(tmp_path) == {"collision": ("a.jpg", "with a.png, a.webp")}


def test_caption_without_a_picture_is_found(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    (tmp_path / "gone.txt").write_text("a cat")
    assert lint(tmp_path) == {"orphan": ("gone.txt", "")}


def test_caption_with_both_endings_is_told_its_name(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", None)
    (tmp_path / "a.jpg.txt").write_text("a cat")
    assert lint(tmp_path) == {"missing": ("a.jpg", "no a.txt"), "orphan": ("a.jpg.txt", "trainers look for a.txt")}


def test_picture_that_a_trainer_sees_otherwise_or_not_at_all_is_found(tmp_path: Path) -> None:
    write(tmp_path, "turned.jpg", picture=rotated_jpeg())
    write(tmp_path, "film.gif")
    write(tmp_path, "bad.png", picture=b"no picture")
    found = lint(tmp_path)
    assert found["sideways"] == ("turned.jpg", "EXIF orientation 6")
    assert found["format"] == ("film.gif", "")
    assert found["unreadable"][0] == "bad.png"
    assert set(found) == {"sideways", "format", "unreadable"}


def test_other_endings_are_looked_at_when_they_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    assert lint(tmp_path, ".caption", ".txt") == {"missing": ("a.jpg", "no a.caption")}


def test_command_groups_what_it_found_and_counts_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(LISTED + 2):
        write(folder, f"{number:02}.jpg", None)
    write(folder, "a.jpg", "one\ntwo")
    shown = run_command("lint", str(folder), home=tmp_path)
    assert shown.returncode == 1, shown.stderr
    assert f"missing ({LISTED + 2}): {KINDS['missing']}\n  {folder / '00.jpg'}: no 00.txt\n" in shown.stdout
    assert "  … and 2 more; --json lists them all\n" in shown.stdout
    assert shown.stdout.index("missing (") < shown.stdout.index("multi-line (1): ")
    assert shown.stdout.endswith(f"pictures: {LISTED + 3}, captions: 1, findings: {LISTED + 3}\n")
    lines = [json.loads(line) for line in run_command("lint", str(folder), "--json", home=tmp_path).stdout.splitlines()]
    assert len(lines) == LISTED + 3
    assert {"kind": "multi-line", "path": str(folder / "a.txt"), "detail": "2 lines"} in lines
    clean = run_command("lint", str(folder), "--ext", "none", "--max-tokens", "76", home=tmp_path)
    assert (clean.returncode, "give one of 75, 225, 512" in clean.stderr) == (2, True)


def test_folder_without_findings_ends_with_0(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", "a.jpg")
    result = run_command("lint", "in", home=tmp_path)
    assert (result.returncode, result.stdout) == (0, "pictures: 1, captions: 1, findings: 0\n")


def test_every_kind_says_what_comes_of_it() -> None:
    assert all(KINDS.values())
    assert Finding("missing", "a.jpg").kind in KINDS
