"""Pictures whose captions are known: a red circle on the left, a blue square on the right."""

from __future__ import annotations

from pathlib import Path

from florence_daemon.demo_answers import true_answer
from florence_daemon.demo_pictures import Shape, cut_out, draw_shapes, encode_picture

SIZE_PX = (640, 480)
SHAPES = (Shape("red", "circle", (60, 150, 250, 340)), Shape("blue", "square", (400, 160, 570, 330)))
PICTURE = draw_shapes(SIZE_PX, SHAPES)
CAPTION = true_answer("<CAPTION>", PICTURE)
DETAILED = true_answer("<MORE_DETAILED_CAPTION>", PICTURE)
TAGS = true_answer("<GENERATE_TAGS>", PICTURE)


def jpeg() -> bytes:
    """The picture as it is."""
    return encode_picture(PICTURE.image, "JPEG")


def rotated_jpeg() -> bytes:
    """The picture lying on its side, with the EXIF orientation (6) that turns it upright again."""
    return encode_picture(PICTURE.image, "JPEG", orientation=6)


def write_transparent_png(path: Path) -> None:
    """The shapes alone; under the transparency lies black, which nobody should see."""
    cut_out(SIZE_PX, SHAPES).save(path)


def write_many(directory: Path, count: int) -> list[Path]:
    """The picture `count` times."""
    paths, content = [directory / f"{number:03}.jpg" for number in range(count)], jpeg()
    for path in paths:
        path.write_bytes(content)
    return paths
