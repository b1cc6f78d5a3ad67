"""Pictures from strangers, over HTTP, to the real engine: each bad one gets a 4xx with a clear text."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.faults.process import DaemonProcess
from tests.conftest import Figure
from tests.engine.poisoned_child import HANG, SEGFAULT
from tests.pictures import CAPTION, PICTURE, jpeg

LIMITS = {"name": "demo", "decode_limit_s": 3.0}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    home = tmp_path_factory.mktemp("pictures")
    with DaemonProcess(home, json.dumps({"model": LIMITS}), module="tests.faults.poisoned_daemon") as running:
        assert ask(running, jpeg()) == (200, CAPTION)
        yield running


def ask(daemon: DaemonProcess, picture: bytes) -> tuple[int, str]:
    """The status, and the answer or the error."""
    url = f"{daemon.url}/process_image?prompt=CAPTION"
    response = httpx.post(url, content=picture, headers={"Content-Type": "image/png"}, timeout=60)
    return response.status_code, response.json()["result" if response.status_code == 200 else "detail"]


def saved(kind: str, **options: object) -> bytes:
    file = BytesIO()
    PICTURE.image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG whose header says this size, with a single line of pixels in it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    line = chunk(b"IDAT", zlib.compress(b"\0" * (width + 1)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + line + chunk(b"IEND", b"")


def larger_frame() -> bytes:
    """A GIF of one pixel whose frame says that it has 65,535 × 65,535."""
    gif = bytearray(b"GIF89a" + struct.pack("<HH", 1, 1) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff")
    return bytes(gif + b"," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\x02\x02D\x01\0;")


BAD = {
    "a bomb by its header": (png(50_000, 50_000), "too large: 2500000000 pixels, and the limit is 200000000"),
    "a bomb in a frame": (larger_frame(), "too large"),
    "a compressed text that swells": (
        png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 200_000_000))),
        "Invalid image data",
    ),
    "cut off": (jpeg()[:3000], "truncated"),
    "a header alone": (b"\x89PNG\r\n\x1a\n", "its header cannot be read"),
    "noise": (bytes(range(256)) * 9, "not a picture that can be read"),
    "a page": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture that can be read"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture that can be read"),
    "PPM": (saved("PPM"), "not a picture that can be read"),
    "TGA": (saved("TGA"), "not a picture that can be read"),
    "PCX": (saved("PCX"), "not a picture that can be read"),
    "an icon": (saved("ICO"), "not a picture that can be read"),
    "a document": (saved("PDF"), "not a picture that can be read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_picture_is_refused_with_its_reason(daemon: DaemonProcess, kind: str) -> None:
    picture, reason = BAD[kind]
    status, text = ask(daemon, picture)
    assert status == 400
    assert text.startswith("Invalid image data: ")
    assert reason in text


@pytest.mark.parametrize(
    "picture",
    [
        saved("GIF", save_all=True, append_images=[Image.new("RGB", (640, 480))] * 500),
        saved("WEBP", save_all=True, append_images=[Image.new("RGB", (640, 480))] * 100, lossless=True),
    ],
    ids=["GIF", "WebP"],
)
def test_of_many_frames_the_first_is_read(daemon: DaemonProcess, picture: bytes) -> None:
    assert ask(daemon, picture) == (200, CAPTION)


@pytest.mark.parametrize(("poison", "reason"), [(HANG, "model.decode_limit_s"), (SEGFAULT, "killed by signal 11")])
def test_picture_that_brings_the_engine_down_is_refused_and_the_next_one_answered(
    daemon: DaemonProcess, poison: bytes, reason: str
) -> None:
    status, text = ask(daemon, jpeg() + poison)
    assert status == 422
    assert text.startswith("Error processing image: ")
    assert reason in text
    assert ask(daemon, jpeg()) == (200, CAPTION)
    assert daemon.process.poll() is None


def test_log_has_no_traceback(daemon: DaemonProcess, figure: Figure) -> None:
    assert "Traceback" not in Path(daemon.log).read_text()
    figure(f"{len(BAD)} kinds of bad pictures over HTTP: 400 with the reason; a hang and a crash: 422 after 3 tries")
