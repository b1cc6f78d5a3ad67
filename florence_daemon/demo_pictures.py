"""Pictures of coloured shapes, drawn with Pillow alone, and the true answer to each prompt about them.

The embedded model is trained on these pictures, the `demo` command shows them, the tests ask about them. A picture can
be drawn at random, or from given shapes:

    >>> red, blue = Shape("red", "circle", (60, 60, 200, 200)), Shape("blue", "square", (400, 300, 520, 420))
    >>> true_answer("<CAPTION>", draw_shapes((640, 480), [red, blue]))
    'a red circle and a blue square'

Random pictures keep a margin around every border that a word depends on (left or centre, small or medium, light or
dark), so that each answer is a function of what can be seen. The order of the shapes is left to right by their centres.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

from florence_daemon.errors import PromptError

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
BACKGROUND_KINDS = ("plain", "graded", "textured")

# Sizes are the square root of the share of the picture that the box covers: squashing does not change it.
SIZES = {"small": (0.15, 0.20), "medium": (0.26, 0.34), "large": (0.42, 0.55)}
MIN_SIDE_PX = 13  # a star of fewer pixels cannot be told from a triangle
MIN_CONTRAST = 100.0  # RGB distance of a shape from every colour of its background
PLACE_MARGIN = 0.05  # a centre keeps this share of the picture away from the lines between thirds
ORDER_MARGIN = 0.10  # centres lie this share of the width apart, so that left to right is beyond doubt
GAP = 0.03  # boxes lie this share of the picture apart
LOCATION_BINS = 1000


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


# Drawing


def draw_picture(
    rng: random.Random, size_px: tuple[int, int] | None = None, shape_count: int | None = None
) -> DrawnPicture:
    """Draw one to three shapes at random. size_px: (width, height), both at least 64; None draws them too."""
    size_px = size_px or random_size_px(rng)
    background = random_background(rng)
    boxes = random_boxes(rng, size_px, shape_count or rng.choice((1, 2, 2, 3, 3)))
    return draw_shapes(size_px, [_random_shape(rng, box, background) for box in boxes], background)


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


# Chance


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
    x, y = _centre(box, size_px)
    return all(abs(value - line) >= PLACE_MARGIN for value in (x, y) for line in (1 / 3, 2 / 3))


def _lie_apart(box: Box, other: Box, size_px: tuple[int, int]) -> bool:
    if abs(_centre(box, size_px)[0] - _centre(other, size_px)[0]) < ORDER_MARGIN:
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


# Truth


def true_answer(prompt: str, picture: DrawnPicture) -> str:
    """Return what a model that sees the picture rightly answers. Raises PromptError for a prompt without a truth."""
    if prompt not in _ANSWERS:
        raise PromptError(f"no true answer is known to the prompt {prompt!r}: use one of {', '.join(_ANSWERS)}")
    return _ANSWERS[prompt](picture)


def place_of(box: Box, size_px: tuple[int, int]) -> str:
    """Return where a box lies by the thirds of the picture that hold its centre: `top left`, `left`, `centre` …"""
    x, y = _centre(box, size_px)
    column = ("left", "", "right")[min(2, int(x * 3))]
    row = ("top", "", "bottom")[min(2, int(y * 3))]
    return f"{row} {column}".strip() or "centre"


def size_word(box: Box, size_px: tuple[int, int]) -> str:
    """Return `small`, `medium` or `large`, by bounds that lie in the middle of the gaps of SIZES."""
    share = math.sqrt((box[2] - box[0]) * (box[3] - box[1]) / (size_px[0] * size_px[1]))
    return "small" if share < 0.23 else "medium" if share < 0.38 else "large"


def _centre(box: Box, size_px: tuple[int, int]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2 / size_px[0], (box[1] + box[3]) / 2 / size_px[1]


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _joined(phrases: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def _count(picture: DrawnPicture) -> str:
    return ("one shape", "two shapes", "three shapes")[len(picture.shapes) - 1]


def _place(shape: Shape, picture: DrawnPicture) -> str:
    return f"at the {place_of(shape.box_px, picture.image.size)}"


def _caption(picture: DrawnPicture) -> str:
    return _joined([_with_article(shape.name) for shape in picture.shapes])


def _detailed(picture: DrawnPicture) -> str:
    return _joined([f"{_with_article(shape.name)} {_place(shape, picture)}" for shape in picture.shapes])


def _more_detailed(picture: DrawnPicture) -> str:
    sentences = [f"The image shows {_count(picture)} on a {picture.background.look} background."]
    for shape in picture.shapes:
        size = size_word(shape.box_px, picture.image.size)
        sentences.append(f"A {size} {shape.name} is {_place(shape, picture)}.")
    return " ".join(sentences)


def _tags(picture: DrawnPicture) -> str:
    return ", ".join(dict.fromkeys(shape.name for shape in picture.shapes))


def _detection(picture: DrawnPicture) -> str:
    return "".join(shape.name + _locations(shape.box_px, picture.image.size) for shape in picture.shapes)


def _locations(box: Box, size_px: tuple[int, int]) -> str:
    sides = (size_px[0], size_px[1]) * 2
    bins = (min(LOCATION_BINS - 1, value * LOCATION_BINS // side) for value, side in zip(box, sides, strict=True))
    return "".join(f"<loc_{bin_}>" for bin_ in bins)


def _analysis(picture: DrawnPicture) -> str:
    return (
        f"art_style: flat shapes, location: NA, text: NA, background: {picture.background.look}, "
        f"image_composition: {_count(picture)}"
    )


# The keys are the prompts that the embedded model answers. Tags come last, on a line of their own, as PromptGen's do.
_ANSWERS: dict[str, Callable[[DrawnPicture], str]] = {
    "<CAPTION>": _caption,
    "<DETAILED_CAPTION>": _detailed,
    "<MORE_DETAILED_CAPTION>": _more_detailed,
    "<GENERATE_TAGS>": _tags,
    "<OD>": _detection,
    "<ANALYZE>": _analysis,
    "<MIXED_CAPTION>": lambda picture: f"{_detailed(picture)}\n{_tags(picture)}",
    "<MIXED_CAPTION_PLUS>": lambda picture: f"{_more_detailed(picture)}\n{_tags(picture)}",
}
PROMPTS = tuple(_ANSWERS)


# Files

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


def encode_at_random(rng: random.Random, image: Image.Image) -> bytes:
    """Return the picture as PNG or as JPEG of any usual quality, each half the time."""
    if rng.random() < 0.5:
        return encode_picture(image, "PNG")
    return encode_picture(image, "JPEG", quality=rng.randint(50, 95))
