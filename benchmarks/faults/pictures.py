"""Pictures by number, each with bytes of its own, and what the stand-in engine must have written beside them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from benchmarks.faults.fake_engine import answer_to
from florence_daemon.demo_pictures import Shape, draw_shapes, encode_picture

CAPTION = "<CAPTION>"
SUFFIX = ".txt"
SIZE_PX = (96, 72)
COLOURS = ("red", "blue", "green", "yellow")
FORMS = ("circle", "square")


@cache
def _drawn(kind: str) -> bytes:
    return encode_picture(draw_shapes(SIZE_PX, [Shape("red", "circle", (10, 10, 50, 50))]).image, kind)


def jpeg(number: int, note: bytes = b"") -> bytes:
    """A JPEG whose comment holds the number and the note: no two are alike, all decode to the same pixels."""
    comment = b"%d %b" % (number, note)
    whole = _drawn("JPEG")
    return whole[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + whole[2:]


def png() -> bytes:
    """The same as a PNG."""
    return _drawn("PNG")


def write_jpegs(folder: Path, numbers: Iterable[int]) -> list[Path]:
    """Write pictures as `00001.jpg`, the slow way that a person's program does: open, write, close."""
    paths = []
    for number in numbers:
        paths.append(folder / f"{number:05}.jpg")
        paths[-1].write_bytes(jpeg(number))
    return paths


def write_drawings(folder: Path, count: int) -> None:
    """Pictures that the demo model has something to say of, each another."""
    for number in range(count):
        chance = random.Random(number)
        left, top = chance.randrange(20, 200), chance.randrange(20, 150)
        shape = Shape(COLOURS[number % 4], FORMS[number // 4 % 2], (left, top, left + 120, top + 120))
        content = encode_picture(draw_shapes((360, 300), [shape]).image, "JPEG")
        (folder / f"{number:05}.jpg").write_bytes(content)


def sidecar(picture: Path) -> Path:
    """Where the picture's caption goes."""
    return picture.with_suffix(SUFFIX)


def is_captioned_rightly(picture: Path, answer_bytes: int = 0) -> bool:
    """Tell whether the sidecar is there and says, whole, what the stand-in says about this very picture."""
    try:
        return sidecar(picture).read_text() == answer_to(CAPTION, picture.read_bytes(), answer_bytes) + "\n"
    except FileNotFoundError:
        return False


def count_sidecars(folder: Path) -> int:
    """How many there are, below it too."""
    return sum(1 for _ in folder.rglob(f"*{SUFFIX}"))
