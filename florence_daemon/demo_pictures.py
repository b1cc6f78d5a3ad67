"""Pictures of coloured shapes, drawn with Pillow alone, and files of them.

The embedded model is trained on such pictures, the `demo` command shows them, the tests ask about them. `demo_chance`
draws them at random; `demo_answers` knows the true answer to each prompt about them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]

# Two accepted values of each colour: CSS's own, and a softer one. Random shapes lie between the two.
COLOURS: dict[str, tuple[RGB, RGB]] = {
    "red": ((255, 0, 0), (205, 35, 40)),
    "green": ((0, 128, 0), (45, 170, 75)),
    "blue": ((0, 0, 255), (45, 90, 215)),
    "yellow": ((255, 255, 0), (245, 215, 45)),
    "orange": ((255, 165, 0), (240, 125, 30)),
    "purple": ((128, 0, 128), (125, 55, 175)),
    "black": ((0, 0, 0), (25, 25, 25)),
    "white": ((255, 255, 255), (238, 238, 238)),
}
KINDS = ("circle", "square", "triangle", "star")


@dataclass(frozen=True)
class Shape:
    """One coloured shape. box_px: (left, top, right, bottom), right and bottom exclusive; it touches all four sides."""

    colour: str
    kind: str
    box_px: Box
    fill_rgb: RGB | None = None  # None: CSS's value of the colour

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Background:
    """What lies behind the shapes: one colour, or two joined by `mask` (an "L" picture, stretched with `resample`)."""

    kind: str
    colours: tuple[RGB, ...]
    mask: Image.Image | None = None
    resample: Image.Resampling = Image.Resampling.BILINEAR

    @property
    def shade(self) -> str:
        return "light" if luminance(self.colours[0]) > 128 else "dark"

    @property
    def look(self) -> str:
        """What an answer calls it. A small network cannot tell a gentle gradient from one colour: both are smooth."""
        return f"{'textured' if self.kind == 'textured' else 'smooth'} {self.shade}"


@dataclass(frozen=True)
class DrawnPicture:
    """A picture (RGB) and the truth about it; the shapes stand left to right."""

    image: Image.Image
    shapes: tuple[Shape, ...]
    background: Background


WHITE = Background("plain", ((255, 255, 255),))


def draw_shapes(size_px: tuple[int, int], shapes: Sequence[Shape], background: Background = WHITE) -> DrawnPicture:
    """Draw given shapes. Raises ValueError for a shape whose name is unknown or whose box leaves the picture."""
    image = _paint_background(size_px, background)
    for shape in shapes:
        _check_shape(shape, size_px)
        image.paste(fill_of(shape), shape.box_px[:2], _shape_mask(shape))
    return DrawnPicture(image, tuple(sorted(shapes, key=_centre_x)), background)


def cut_out(size_px: tuple[int, int], shapes: Sequence[Shape], hidden_rgb: RGB = (0, 0, 0)) -> Image.Image:
    """Draw given shapes (RGBA) on full transparency; hidden_rgb lies under it, where nobody is meant to see it."""
    image = Image.new("RGBA", size_px, (*hidden_rgb, 0))
    for shape in shapes:
        _check_shape(shape, size_px)
        mask = _shape_mask(shape)
        tile = Image.new("RGBA", mask.size, (*fill_of(shape), 255))
        tile.putalpha(mask)
        drawn = mask.point(lambda value: 255 if value else 0)
        image.paste(tile, shape.box_px[:2], drawn)
    return image


def fill_of(shape: Shape) -> RGB:
    return shape.fill_rgb or COLOURS[shape.colour][0]


def luminance(rgb: RGB) -> float:
    """Return the perceived brightness, 0 to 255 (ITU-R BT.601)."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def _check_shape(shape: Shape, size_px: tuple[int, int]) -> None:
    left, top, right, bottom = shape.box_px
    if shape.colour not in COLOURS or shape.kind not in KINDS:
        raise ValueError(f"no shape is called {shape.name!r}: use one of {list(COLOURS)} and one of {list(KINDS)}")
    if not (0 <= left < right <= size_px[0] and 0 <= top < bottom <= size_px[1]):
        raise ValueError(f"the box {shape.box_px} of the {shape.name} is not inside the picture of {size_px} pixels")


def _centre_x(shape: Shape) -> float:
    return (shape.box_px[0] + shape.box_px[2]) / 2


def _paint_background(size_px: tuple[int, int], background: Background) -> Image.Image:
    if background.mask is None:
        return Image.new("RGB", size_px, background.colours[0])
    # Colours first, size second: a stretch of 4000 pixels costs the same either way and needs no full-size mask.
    coloured = ImageOps.colorize(background.mask, black=background.colours[0], white=background.colours[1])
    return coloured.resize(size_px, background.resample)


def _shape_mask(shape: Shape) -> Image.Image:
    """Return the shape as an antialiased mask ("L") of the size of its box."""
    width, height = shape.box_px[2] - shape.box_px[0], shape.box_px[3] - shape.box_px[1]
    oversampling = 4 if max(width, height) <= 500 else 2  # large edges look smooth sooner, and cost more
    size_px = (width * oversampling, height * oversampling)
    mask = Image.new("L", size_px, 0)
    pen = ImageDraw.Draw(mask)
    if shape.kind == "circle":
        pen.ellipse((0, 0, size_px[0] - 1, size_px[1] - 1), fill=255)
    else:
        pen.polygon([(x * (size_px[0] - 1), y * (size_px[1] - 1)) for x, y in _OUTLINES[shape.kind]], fill=255)
    return mask.reduce(oversampling)


def _star_outline() -> list[tuple[float, float]]:
    """Return the ten corners of an upright star, stretched to fill the unit square."""
    corners = []
    for index in range(10):
        radius, angle = (1.0 if index % 2 == 0 else 0.42), math.radians(36 * index - 90)
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    left, top = min(x for x, _ in corners), min(y for _, y in corners)
    width, height = max(x for x, _ in corners) - left, max(y for _, y in corners) - top
    return [((x - left) / width, (y - top) / height) for x, y in corners]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "star": _star_outline(),
}


def centre_of(box: Box, size_px: tuple[int, int]) -> tuple[float, float]:
    """Return the centre of a box in shares of the picture's width and height."""
    return (box[0] + box[2]) / 2 / size_px[0], (box[1] + box[3]) / 2 / size_px[1]


_TURNED_BEFORE_SAVING = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encode_picture(image: Image.Image, file_format: str = "PNG", quality: int = 90, orientation: int = 1) -> bytes:
    """Return a PNG or JPEG file that shows `image` upright to whoever obeys its EXIF orientation (1 to 8)."""
    exif = Image.Exif()
    if orientation != 1:
        image = image.transpose(_TURNED_BEFORE_SAVING[orientation])
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    options = {"quality": quality} if file_format == "JPEG" else {"compress_level": 1}
    image.save(buffer, file_format, exif=exif, **options)
    return buffer.getvalue()
