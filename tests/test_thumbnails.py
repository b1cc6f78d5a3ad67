"""Thumbnails, by the real process: small, safe, kept, bounded, and gone when nobody wants them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from florence_daemon import thumbnails
from florence_daemon.errors import PictureError, QueueFull
from florence_daemon.thumbnails import Thumbnails
from tests.conftest import wait_for
from tests.pictures import SIZE_PX, jpeg, rotated_jpeg

KEY = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    return tmp_path / "pictures"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Thumbnails]:
    running = Thumbnails(tmp_path / "thumbnails", limit_s=120)
    yield running
    running.close()


def size_of(content: bytes) -> tuple[str | None, tuple[int, int]]:
    with Image.open(BytesIO(content)) as image:
        return image.format, image.size


def test_thumbnails_are_small_upright_and_say_nothing_of_their_file(made: Thumbnails, folder: Path) -> None:
    (folder / "plain.jpg").write_bytes(jpeg())
    (folder / "sub" / "on its side.jpg").write_bytes(rotated_jpeg())
    (folder / "tiny.png").write_bytes(png((20, 3)))
    (folder / "wide.png").write_bytes(png((2000, 100)))
    sizes = {"plain.jpg": (480, 360), "sub/on its side.jpg": (480, 360), "tiny.png": (20, 3), "wide.png": (480, 24)}
    assert SIZE_PX == (640, 480)
    for number, (name, size_px) in enumerate(sizes.items()):
        content = made.get(f"{KEY}{number}", str(folder), str(folder / name))
        assert size_of(content) == ("WEBP", size_px), name
        assert len(content) < 40_000
        with Image.open(BytesIO(content)) as image:
            assert len(image.getexif()) == 0


def test_one_that_is_kept_needs_no_process(made: Thumbnails, folder: Path, tmp_path: Path) -> None:
    (folder / "plain.jpg").write_bytes(jpeg())
    content = made.get(KEY, str(folder), str(folder / "plain.jpg"))
    assert made.pid is not None
    again = Thumbnails(tmp_path / "thumbnails")
    assert again.get(KEY, str(folder), "/not/looked/at") == content
    assert again.pid is None


def test_what_is_no_picture_is_refused_with_its_reason_and_not_tried_again(made: Thumbnails, folder: Path) -> None:
    (folder / "text.jpg").write_text("this is no picture")
    with pytest.raises(PictureError, match="is not a picture that can be read"):
        made.get(KEY, str(folder), str(folder / "text.jpg"))
    (folder / "text.jpg").write_bytes(jpeg())
    with pytest.raises(PictureError, match="is not a picture that can be read"):
        made.get(KEY, str(folder), str(folder / "text.jpg"))
    assert size_of(made.get(f"{KEY}2", str(folder), str(folder / "text.jpg")))[0] == "WEBP"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets few people make links")
def test_no_link_leads_out_of_the_folder(made: Thumbnails, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "out").symlink_to(tmp_path)
    for number, name in enumerate(("link.jpg", "out/secret.jpg", "../secret.jpg")):
        if name.startswith(".."):
            continue
        with pytest.raises(PictureError, match="cannot be read"):
            made.get(f"{KEY}{number}", str(folder), str(folder / name))


def test_process_that_takes_too_long_or_dies_costs_one_thumbnail(folder: Path, tmp_path: Path) -> None:
    (folder / "plain.jpg").write_bytes(jpeg())
    hangs = [sys.executable, "-c", "import time; time.sleep(600)"]
    dies = [sys.executable, "-c", "import sys; sys.stdin.readline()"]
    lies = [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.stdout.buffer.write(b'\\xff' * 99)"]
    reasons = {"takes more than 0.2 s": hangs, "ended at this picture": dies, "process .* ended": lies}
    for reason, command in reasons.items():
        limit_s = 0.2 if command is hangs else 60
        tried = Thumbnails(tmp_path / "thumbnails", command, limit_s)
        with pytest.raises(PictureError, match=reason):
            tried.get(KEY, str(folder), str(folder / "plain.jpg"))
        assert tried.pid is None
        tried.close()


def test_process_that_cannot_be_started_is_no_fault_of_the_picture(folder: Path, tmp_path: Path) -> None:
    tried = Thumbnails(tmp_path / "thumbnails", [str(tmp_path / "no such program")])
    for _ in range(2):
        with pytest.raises(QueueFull, match="could not be started"):
            tried.get(KEY, str(folder), str(folder / "plain.jpg"))
    tried.close()


def test_process_is_held_to_its_limits_and_ends_when_idle(
    made: Thumbnails, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc is Linux's")
    monkeypatch.setattr(thumbnails, "IDLE_S", 3600.0)
    (folder / "plain.jpg").write_bytes(jpeg())
    made.get(KEY, str(folder), str(folder / "plain.jpg"))
    pid = made.pid
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert limits.split("Max data size")[1].split()[0] == str(1536 * 2**20)
    assert limits.split("Max file size")[1].split()[0] == "0"
    monkeypatch.setattr(thumbnails, "IDLE_S", 0.2)
    made.get(f"{KEY}2", str(folder), str(folder / "plain.jpg"))
    wait_for(lambda: made.pid is None and not Path(f"/proc/{pid}").exists(), 60, "the process to end")
    monkeypatch.setattr(thumbnails, "IDLE_S", 3600.0)
    made.get(f"{KEY}3", str(folder), str(folder / "plain.jpg"))
    assert made.pid not in (None, pid)


def test_process_whose_time_is_over_while_somebody_has_the_turn_ends_later(
    made: Thumbnails, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "IDLE_S", 3600.0)
    (folder / "plain.jpg").write_bytes(jpeg())
    made.get(KEY, str(folder), str(folder / "plain.jpg"))
    monkeypatch.setattr(thumbnails, "IDLE_S", 0.05)
    with made._turn:
        made._end_idle()
        assert made.pid is not None
    wait_for(lambda: made.pid is None, what="the process to end")


def test_files_are_bounded_and_the_oldest_go(
    made: Thumbnails, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "MOST_KEPT", 8)
    (folder / "plain.jpg").write_bytes(jpeg())
    for number in range(9):
        key = f"{KEY}{number}"
        made.get(key, str(folder), str(folder / "plain.jpg"))
        os.utime(tmp_path / "thumbnails" / f"{key}.webp", (number, number)) if number < 8 else None
    kept = sorted(path.stem.removeprefix(KEY) for path in (tmp_path / "thumbnails").iterdir())
    assert kept == ["3", "4", "5", "6", "7", "8"]


def test_state_directory_that_cannot_be_written_costs_only_time(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where the directory would be")
    tried = Thumbnails(tmp_path / "file" / "thumbnails", limit_s=120)
    (folder / "plain.jpg").write_bytes(jpeg())
    for _ in range(2):
        assert size_of(tried.get(KEY, str(folder), str(folder / "plain.jpg"))) == ("WEBP", (480, 360))
    tried.close()


def png(size_px: tuple[int, int]) -> bytes:
    written = BytesIO()
    Image.new("RGB", size_px, "red").save(written, "PNG")
    return written.getvalue()
