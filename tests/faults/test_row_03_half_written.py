"""Half-written files: slow copies with pauses longer than the settle time, in several ways of writing."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.faults.fake_engine import FakeSettings, digest_of
from benchmarks.faults.pictures import is_captioned_rightly, jpeg, sidecar
from benchmarks.faults.process import wait_for
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon

SETTLE_S = 0.2
PIECES = 5


def pieces_of(content: bytes) -> list[bytes]:
    size = 1 + len(content) // PIECES
    return [content[start : start + size] for start in range(0, len(content), size)]


def append(path: Path, content: bytes) -> None:
    """As a download does: the file grows."""
    with path.open("wb") as file:
        for piece in pieces_of(content):
            file.write(piece)
            file.flush()
            time.sleep(2 * SETTLE_S)


def append_and_close(path: Path, content: bytes) -> None:
    """Each piece with an opening and a closing of its own, which looks as if the file were done."""
    for piece in pieces_of(content):
        with path.open("ab") as file:
            file.write(piece)
        time.sleep(2 * SETTLE_S)


def fill_in_place(path: Path, content: bytes) -> None:
    """As `rsync --inplace --preallocate` does: the file has its size from the start."""
    with path.open("wb") as file:
        file.truncate(len(content))
        for piece in pieces_of(content):
            file.write(piece)
            file.flush()
            time.sleep(2 * SETTLE_S)


def start_over(path: Path, content: bytes) -> None:
    """A copy that breaks off and is begun again."""
    path.write_bytes(content[: len(content) // 2])
    time.sleep(3 * SETTLE_S)
    append(path, content)


WAYS = [append, append_and_close, fill_in_place, start_over]


def test_slow_writing_with_pauses_ends_in_one_right_caption_for_each_way(
    start: StartDaemon, folder: Path, figure: Figure
) -> None:
    daemon = start(settle_s=SETTLE_S)
    jobs = [(way, folder / f"{way.__name__}-{copy}.jpg", jpeg(copy)) for way in WAYS for copy in range(3)]
    threads = [threading.Thread(target=way, args=(path, content)) for way, path, content in jobs]
    for thread in threads:
        thread.start()
    partial: set[Path] = set()
    while any(thread.is_alive() for thread in threads):
        partial |= {path for _, path, content in jobs if sidecar(path).exists() and path.read_bytes() != content}
        time.sleep(0.02)
    wait_for(lambda: all(is_captioned_rightly(path) for _, path, _ in jobs), 60, "every caption")
    wait_for(lambda: not daemon.failures(), 60, "the list of failures to be empty")
    assert partial == set()
    figure(f"{len(jobs)} of {len(jobs)} captioned, written in {len(WAYS)} ways; 0 of partial content, 0 stuck")


def test_rsync_in_place_ends_in_one_right_caption(start: StartDaemon, tmp_path: Path, folder: Path) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    source = tmp_path / "large.jpg"
    whole = jpeg(1)
    source.write_bytes(whole[:2] + b"".join(comment_of(os.urandom(60_000)) for _ in range(20)) + whole[2:])
    daemon = start(settle_s=SETTLE_S)
    subprocess.run(["rsync", "--inplace", "--bwlimit=400", str(source), str(folder)], check=True)
    wait_for(lambda: is_captioned_rightly(folder / "large.jpg"), 60, "the caption")
    assert [each.digest for each in daemon.inferred()] == [digest_of(source.read_bytes())]


def comment_of(content: bytes) -> bytes:
    return b"\xff\xfe" + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(jpeg(2)),
        lambda path: (path.with_name("other").write_bytes(jpeg(2)), path.with_name("other").rename(path)),
    ],
    ids=["overwritten", "replaced"],
)
def test_picture_that_changes_while_it_is_captioned_gets_the_caption_of_what_it_is_now(
    start: StartDaemon, tmp_path: Path, folder: Path, change: Callable[[Path], object]
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    daemon = start(FakeSettings(gate=str(gate)))
    (folder / "a.jpg").write_bytes(jpeg(1))
    wait_for(lambda: daemon.inferred("begun"), 60, "the engine to begin")
    change(folder / "a.jpg")
    gate.unlink()
    wait_for(sidecar(folder / "a.jpg").exists, 60, "the caption")
    assert is_captioned_rightly(folder / "a.jpg")
    assert [each.digest for each in daemon.inferred()] == [digest_of(jpeg(1)), digest_of(jpeg(2))]
