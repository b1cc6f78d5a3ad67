"""Pictures of coloured shapes at random, of which each answer is a function of what can be seen.

They keep a margin around every border that a word depends on: left or centre, small or medium, light or dark.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from PIL import Image, ImageOps

from florence_daemon.demo_pictures import (
    COLOURS,
    KINDS,
    RGB,
    WHITE,
    Background,
    Box,
    DrawnPicture,
    Shape,
    centre_of,
    draw_shapes,
    encode_picture,
)

BACKGROUND_KINDS = ("plain", "graded", "textured")

# Sizes are the square root of the share of the picture that the box covers: squashing does not change it.
SIZES = {"small": (0.15, 0.20), "medium": (0.26, 0.34), "large": (0.42, 0.55)}
MIN_SIDE_PX = 13  # a star of fewer pixels cannot be told from a triangle
MIN_CONTRAST = 100.0  # RGB distance of a shape from every colour of its background
PLACE_MARGIN = 0.05  # a centre keeps this share of the picture away from the lines between thirds
ORDER_MARGIN = 0.10  # centres lie this share of the width apart, so that left to right is beyond doubt
GAP = 0.03  # boxes lie this share of the picture apart


def draw_picture(
    rng: random.Random, size_px: tuple[int, int] | None = None, shape_count: int | None = None
) -> DrawnPicture:
    """Draw one to three shapes at random. size_px: (width, height), both at least 64; None draws them too."""
    size_px = size_px or random_size_px(rng)
    background = random_background(rng)
    boxes = random_boxes(rng, size_px, shape_count or rng.choice((1, 2, 2, 3, 3)))
    return draw_shapes(size_px, [_random_shape(rng, box, background) for box in boxes], background)


def random_size_px(rng: random.Random, min_px: int = 64, max_px: int = 4000) -> tuple[int, int]:
    """Return (width, height): sides between the bounds, every magnitude as likely, aspect ratio from 1:2 to 2:1."""
    short = min_px * (max_px / min_px) ** rng.random()
    long = min(short * 2 ** rng.random(), max_px)
    sides = (round(short), round(long))
    return sides if rng.random() < 0.5 else (sides[1], sides[0])


def random_background(rng: random.Random) -> Background:
    """Return a light or dark background; every fifth is plain white, where transparent pictures are put."""
    if rng.random() < 0.2:
        return WHITE
    kind = rng.choice(BACKGROUND_KINDS)
    is_light = rng.random() < 0.6
    if kind == "plain":
        return Background(kind, (_background_rgb(rng, is_light),))
    # Far enough apart to survive JPEG and a small picture, near enough to leave room for shapes that contrast.
    colours = _two_colours(rng, is_light, (60, 120) if kind == "graded" else (40, 80))
    if kind == "graded":
        return Background(kind, colours, _gradient_mask(rng))
    resample = rng.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
    return Background(kind, colours, _texture_mask(rng), resample)


def random_boxes(rng: random.Random, size_px: tuple[int, int], count: int) -> list[Box]:
    """Return boxes that lie apart and whose place, size and order are beyond doubt."""
    while True:
        boxes: list[Box] = []
        for _ in range(40):
            box = _random_box(rng, size_px)
            if _is_placed_clearly(box, size_px) and all(_lie_apart(box, other, size_px) for other in boxes):
                boxes.append(box)
            if len(boxes) == count:
                return boxes


def _random_box(rng: random.Random, size_px: tuple[int, int]) -> Box:
    mean_side_px = math.sqrt(size_px[0] * size_px[1])
    fitting = [bounds for bounds in SIZES.values() if bounds[0] * mean_side_px >= MIN_SIDE_PX]
    side_px = round(rng.uniform(*rng.choice(fitting)) * mean_side_px)
    left = rng.randint(0, size_px[0] - side_px)
    top = rng.randint(0, size_px[1] - side_px)
    return left, top, left + side_px, top + side_px


def _is_placed_clearly(box: Box, size_px: tuple[int, int]) -> bool:
    x, y = centre_of(box, size_px)
    return all(abs(value - line) >= PLACE_MARGIN for value in (x, y) for line in (1 / 3, 2 / 3))


def _lie_apart(box: Box, other: Box, size_px: tuple[int, int]) -> bool:
    if abs(centre_of(box, size_px)[0] - centre_of(other, size_px)[0]) < ORDER_MARGIN:
        return False
    gap_x, gap_y = GAP * size_px[0], GAP * size_px[1]
    beside = box[2] + gap_x <= other[0] or other[2] + gap_x <= box[0]
    above = box[3] + gap_y <= other[1] or other[3] + gap_y <= box[1]
    return beside or above


def _random_shape(rng: random.Random, box: Box, background: Background) -> Shape:
    while True:
        colour = rng.choice(list(COLOURS))
        fill = _between(rng, *COLOURS[colour])
        if contrast(fill, background) >= MIN_CONTRAST:
            return Shape(colour, rng.choice(KINDS), box, fill)


def contrast(rgb: RGB, background: Background) -> float:
    """Return the RGB distance to the nearest colour of the background (the ends and the middle of a mixture)."""
    first, last = background.colours[0], background.colours[-1]
    middle = tuple((a + b) // 2 for a, b in zip(first, last, strict=True))
    return min(math.dist(rgb, other) for other in (first, middle, last))


def _between(rng: random.Random, first: RGB, last: RGB, jitter: int = 8) -> RGB:
    share = rng.random()
    red, green, blue = (
        min(255, max(0, round(a + (b - a) * share) + rng.randint(-jitter, jitter)))
        for a, b in zip(first, last, strict=True)
    )
    return red, green, blue


def _background_rgb(rng: random.Random, is_light: bool) -> RGB:
    low, high = (165, 255) if is_light else (0, 90)
    level = rng.randint(low, high)
    tint = 0 if rng.random() < 0.4 else 30
    red, green, blue = (min(high, max(low, level + rng.randint(-tint, tint))) for _ in range(3))
    return red, green, blue


def _two_colours(rng: random.Random, is_light: bool, distance: tuple[int, int]) -> tuple[RGB, RGB]:
    while True:
        first, last = _background_rgb(rng, is_light), _background_rgb(rng, is_light)
        if distance[0] <= math.dist(first, last) <= distance[1]:
            return first, last


def _gradient_mask(rng: random.Random) -> Image.Image:
    """Return a gradient in a random direction: a mixture of a horizontal and a vertical one."""
    vertical = Image.linear_gradient("L")
    horizontal = vertical.transpose(Image.Transpose.ROTATE_90)
    if rng.random() < 0.5:
        horizontal = ImageOps.mirror(horizontal)
    # The mixture spans all 256 values only at its ends; stretch it, so that the colours' distance is what is seen.
    return ImageOps.autocontrast(Image.blend(horizontal, vertical, rng.choice((0.0, 1.0, rng.random()))))


def _texture_mask(rng: random.Random) -> Image.Image:
    """Return checks, stripes or noise of 8 to 16 cells a side: coarse enough to survive the squash to the input."""
    columns, rows = rng.randint(8, 16), rng.randint(8, 16)
    pattern: Callable[[int, int], int] = rng.choice(
        (
            lambda x, y: 255 * ((x + y) % 2),
            lambda x, y: 255 * (x % 2),
            lambda x, y: 255 * (y % 2),
            lambda x, y: rng.randrange(256),
        )
    )
    return Image.frombytes("L", (columns, rows), bytes(pattern(x, y) for y in range(rows) for x in range(columns)))


def encode_at_random(rng: random.Random, image: Image.Image) -> bytes:
    """Return the picture as PNG or as JPEG of any usual quality, each half the time."""
    if rng.random() < 0.5:
        return encode_picture(image, "PNG")
    return encode_picture(image, "JPEG", quality=rng.randint(50, 95))
