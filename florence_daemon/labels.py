"""Labels on a picture: letters on a patch of colour, inside the picture and beside one another where there is room."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from florence_daemon.logs import printable

RGB = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont

# Letters grow slower than pictures: of a large one less is seen at a time, and a small one still has to be read.
_LETTER_PX, _LETTER_PX_PER_SCALE = 9.0, 15.0
_MOST_LINES = 3
_WIDEST = 0.45  # of the picture's width: longer labels are wrapped
# Pillow's own font knows ASCII alone. Other letters are looked for among the system's fonts, these first (Linux, then
# Windows and macOS); Pillow searches the usual directories.
SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",
    "msgothic.ttc",
    "seguisym.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "PingFang.ttc",
)
# What no font has is shown so; the printed answer has it all.
_UNKNOWN = "?"


@dataclass(frozen=True)
class Label:
    """What is written at a place. box_px: the place's left, top, right and bottom."""

    text: str
    box_px: Box
    colour: RGB


def layer_labels(image: Image.Image, labels: Sequence[Label], scale: float, line_px: int) -> None:
    """Write the labels into an RGB picture. scale: 1 for a picture of 1000 × 1000 pixels."""
    draw = ImageDraw.Draw(image)
    letter_px = round(_LETTER_PX + _LETTER_PX_PER_SCALE * scale)
    margin_px = max(2, letter_px // 5)
    placed: list[Box] = []
    for label in labels:
        font, text = _written(label.text, letter_px)
        text = _wrap(text, font, max(_WIDEST * image.width, letter_px * 4) - 2 * margin_px)
        left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font)
        size_px = right - left + 2 * margin_px, bottom - top + 2 * margin_px
        box = choose_spot(label.box_px, size_px, image.size, placed, line_px)
        placed.append(box)
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=label.colour)
        draw.multiline_text(
            (box[0] + margin_px - left, box[1] + margin_px - top), text, fill=_ink(label.colour), font=font
        )


def choose_spot(
    around: Box, size_px: tuple[float, float], picture_px: tuple[int, int], placed: Sequence[Box], gap_px: float
) -> Box:
    """The first spot at a place where a label covers no other one, else the one where it covers least of them."""
    best, least = None, float("inf")
    for left, top in _spots(around, size_px, picture_px, gap_px):
        left = round(min(max(left, 0), max(picture_px[0] - size_px[0], 0)))
        top = round(min(max(top, 0), max(picture_px[1] - size_px[1], 0)))
        box = (left, top, left + size_px[0], top + size_px[1])
        covered = sum(_overlap(box, other) for other in placed)
        if covered < least:
            best, least = box, covered
        if not covered:
            break
    assert best is not None  # noqa: S101 - there is always a spot
    return best


def _spots(
    around: Box, size_px: tuple[float, float], picture_px: tuple[int, int], gap_px: float
) -> Iterator[tuple[float, float]]:
    """Above, inside the top, below, inside the bottom, at the right; then down along the place, in steps of a label."""
    left, top, right, bottom = around
    width, height = size_px
    if top - height - gap_px / 2 >= 0:
        yield left - gap_px / 2, top - height - gap_px / 2
    yield left + gap_px / 2, top + gap_px / 2
    yield right - width - gap_px / 2, top + gap_px / 2
    if bottom + height + gap_px / 2 <= picture_px[1]:
        yield left - gap_px / 2, bottom + gap_px / 2
    yield left + gap_px / 2, bottom - height - gap_px / 2
    yield right - width - gap_px / 2, bottom - height - gap_px / 2
    yield right + gap_px, top
    step_px = max(height, picture_px[1] / 60)
    for number in range(1, int(picture_px[1] / step_px)):
        yield left + gap_px / 2, top + number * step_px
        yield left + gap_px / 2, top - number * step_px


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _ink(colour: RGB) -> RGB:
    """Black or white, whichever has the greater contrast to the colour (WCAG 2.2)."""
    red, green, blue = ((part / 255) ** 2.2 for part in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (0, 0, 0) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)


def _wrap(text: str, font: Font, width_px: float) -> str:
    """Break between words, and within those that are too long; what is beyond the last line is left out."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < _MOST_LINES:
        fitting = _fitting(rest, font, width_px)
        lines.append(rest[:fitting].rstrip())
        rest = rest[fitting:].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "…") > width_px:
            last = last[:-1]
        lines[-1] = last.rstrip() + "…"
    return "\n".join(lines)


def _fitting(text: str, font: Font, width_px: float) -> int:
    """How many characters of it go into one line."""
    if font.getlength(text) <= width_px:
        return len(text)
    count = 1
    while count < len(text) and font.getlength(text[: count + 1]) <= width_px:
        count += 1
    blank = text.rfind(" ", 0, count + 1)
    return blank if blank > 0 else count


def _written(text: str, letter_px: int) -> tuple[Font, str]:
    """The font that has most of a label's letters, and the label with the others replaced."""
    text = " ".join(printable(" ".join(text.split())).split())
    fonts = (_own_font(letter_px), *(font for name in SYSTEM_FONTS if (font := _system_font(name, letter_px))))
    best, missing = fonts[0], set(text)
    for font in fonts:
        lacking = {char for char in set(text) if not _has(font, char)}
        if len(lacking) < len(missing):
            best, missing = font, lacking
        if not lacking:
            break
    return best, "".join(_without_accent(best, char) if char in missing else char for char in text)


def _without_accent(font: Font, char: str) -> str:
    """`e` for an é that a font lacks."""
    bare = unicodedata.normalize("NFKD", char)[0]
    return bare if bare != char and _has(font, bare) else _UNKNOWN


def has_font_for(text: str) -> bool:
    """Tell whether there is a font with all of a label's letters."""
    return _UNKNOWN not in _written(text.replace(_UNKNOWN, ""), round(_LETTER_PX))[1]


@cache
def _own_font(letter_px: int) -> Font:
    font = ImageFont.load_default(letter_px)
    assert isinstance(font, ImageFont.FreeTypeFont)  # noqa: S101 - Pillow's wheels have FreeType
    return font


@cache
def _system_font(name: str, letter_px: int) -> Font | None:
    try:
        return ImageFont.truetype(name, letter_px)
    except OSError:
        return None


@cache
def _has(font: Font, char: str) -> bool:
    """Tell whether a font has a letter: for one that it lacks, it draws what it draws for a character that is none."""
    if char.isspace():
        return True
    shape, none = font.getmask(char), font.getmask("\U0010ffff")
    return shape.size != none.size or bytes(shape) != bytes(none)
