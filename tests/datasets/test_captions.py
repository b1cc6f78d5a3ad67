"""What a trainer would read of a sidecar, and what is wrong with those that it could not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from florence_daemon.datasets.captions import LIMIT_BYTES, Caption, Unusable, read_caption, tags_of


def read(tmp_path: Path, content: bytes) -> Caption | Unusable:
    (tmp_path / "a.txt").write_bytes(content)
    return read_caption(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a cat\n", Caption("a cat", False, 1)),
        (b"  a cat  \r\n\r\n", Caption("a cat", False, 1)),
        (b"\xef\xbb\xbfa cat\n", Caption("a cat", True, 1)),
        (b"a cat\n\non a mat", Caption("a cat\n\non a mat", False, 2)),
        (b"a cat\rfur\r\n", Caption("a cat\nfur", False, 2)),
        ("a\u2028cat\n".encode(), Caption("a\u2028cat", False, 1)),
    ],
)
def test_caption_is_read(tmp_path: Path, content: bytes, expected: Caption) -> None:
    assert read(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"", "empty", "is empty"),
        (b"\xef\xbb\xbf \n\n", "empty", "is empty"),
        ("Grün".encode("latin-1"), "not-utf-8", "is not UTF-8: byte 0xfc at 2"),
        ("a cat".encode("utf-16"), "not-utf-8", "is UTF-16; save it as UTF-8"),
        (b"x" * (LIMIT_BYTES + 1), "unreadable", "this is no caption"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path: Path, content: bytes, kind: str, reason: str) -> None:
    found = read(tmp_path, content)
    assert isinstance(found, Unusable)
    assert found.kind == kind
    assert reason in found.reason


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of somebody else")
    os.symlink(tmp_path / "secret", tmp_path / "link.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    for name in ("link.txt", "pipe.txt", "folder.txt", "nothing.txt"):
        found = read_caption(str(tmp_path / name))
        assert isinstance(found, Unusable)
        assert found.kind == "unreadable"


def test_tags_come_on_one_line_however_they_are_parted() -> None:
    assert tags_of(Caption("a, b,\n c,,d ", False, 2)) == "a, b, c, d"
