"""Draw an answer's places into the picture: boxes, quadrilaterals and outlines, each with its label."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from florence_daemon.labels import RGB, Label, Point, layer_labels

# Twelve hues that stay apart on any picture, also for most colour-blind eyes; a label keeps its own in every picture.
COLOURS: tuple[RGB, ...] = (
    (230, 25, 75),
    (60, 180, 75),
    (0, 130, 200),
    (255, 225, 25),
    (245, 130, 48),
    (150, 60, 210),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 150, 160),
    (0, 128, 128),
    (170, 110, 40),
)
# The formats in which it is written, by their endings.
SUFFIXES = (".png", ".jpg", ".jpeg")
_MARK = "florence-daemon caption --draw"
# Widths and letters for a picture of this side in pixels (the root of its area); others are scaled.
_SIDE_PX = 1000
_LINE_PX = 4.0
_FILL_OPACITY = 90  # of 255: what lies under an outline stays visible


@dataclass(frozen=True)
class Place:
    """One thing that was found. outlines: closed, in pixels of the upright picture; is_area: its inside is tinted."""

    label: str
    outlines: tuple[tuple[Point, ...], ...]
    is_area: bool = False

    @property
    def box_px(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of all of it."""
        xs, ys = zip(*(point for outline in self.outlines for point in outline), strict=True)
        return min(xs), min(ys), max(xs), max(ys)


def places_of(result: dict[str, Any]) -> list[Place]:
    """Read an answer of any structured task; see `tasks.parse_answer` for its form."""
    places = []
    for x1, y1, x2, y2, label in _labelled(result, "bboxes"):
        places.append(Place(label, (((x1, y1), (x2, y1), (x2, y2), (x1, y2)),)))
    for *corners, label in _labelled(result, "quad_boxes"):
        places.append(Place(label, (_points(corners),)))
    for *outlines, label in _labelled(result, "polygons"):
        places.append(Place(label, tuple(_points(outline) for outline in outlines if len(outline) >= 6), is_area=True))
    return [place for place in places if place.outlines]


def _labelled(result: dict[str, Any], kind: str) -> list[tuple[Any, ...]]:
    """The shapes of one kind, each with its label as the last member."""
    shapes: list[Any] = result.get(kind, [])
    labels = result.get(f"{kind}_labels", result.get("labels", [])) if shapes else []
    return [(*shape, label) for shape, label in zip(shapes, labels, strict=True)]


def _points(numbers: Sequence[float]) -> tuple[Point, ...]:
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def draw_places(image: Image.Image, places: Sequence[Place]) -> Image.Image:
    """Draw into a copy of an upright RGB picture; large places lie under small ones, and labels over all."""
    drawn = image.copy()
    scale = max(0.4, (image.width * image.height) ** 0.5 / _SIDE_PX)
    line_px = max(2, round(_LINE_PX * scale))
    colours = colours_of(places)
    ordered = sorted(zip(places, colours, strict=True), key=lambda pair: -_area(pair[0]))
    for place, colour in ordered:
        for outline in place.outlines:
            if place.is_area:
                _tint(drawn, outline, colour)
    draw = ImageDraw.Draw(drawn)
    for place, colour in ordered:
        for outline in place.outlines:
            _stroke(draw, _inside(outline, image.size), colour, line_px)
    labels = [Label(place.label, place.box_px, colour) for place, colour in ordered if place.label.strip()]
    layer_labels(drawn, labels, scale, line_px)
    return drawn


def colours_of(places: Sequence[Place]) -> list[RGB]:
    """A colour for each place: the label's own, the next free one where another label of the picture has that."""
    taken: dict[int, str] = {}
    chosen: dict[str, int] = {}
    # Places without a name are told apart by their number.
    keys = [place.label.strip().lower() or f"#{number}" for number, place in enumerate(places)]
    for key in sorted(set(keys)):
        start = zlib.crc32(key.encode("utf-8", "backslashreplace"))
        tries = ((start + step) % len(COLOURS) for step in range(len(COLOURS)))
        chosen[key] = next((number for number in tries if number not in taken), start % len(COLOURS))
        taken[chosen[key]] = key
    return [COLOURS[chosen[key]] for key in keys]


def _area(place: Place) -> float:
    left, top, right, bottom = place.box_px
    return (right - left) * (bottom - top)


def _inside(outline: Sequence[Point], size_px: tuple[int, int]) -> list[Point]:
    """The last row and column belong to a line that runs along the edge, which is seen only inside."""
    width, height = size_px
    return [(min(max(x, 0), width - 1), min(max(y, 0), height - 1)) for x, y in outline]


def _stroke(draw: ImageDraw.ImageDraw, outline: Sequence[Point], colour: RGB, line_px: int) -> None:
    """A closed line with a thin dark rim, so that it shows on its own colour too."""
    closed = [*outline, *outline[:2]]  # the first corner again, and a bit further, so that it is joined as the others
    rim_px = max(1, line_px // 4)
    draw.line(closed, fill=(0, 0, 0), width=line_px + 2 * rim_px, joint="curve")
    draw.line(closed, fill=colour, width=line_px, joint="curve")


def _tint(image: Image.Image, outline: Sequence[Point], colour: RGB) -> None:
    left, top = (max(0, int(min(values))) for values in zip(*outline, strict=True))
    right, bottom = (int(max(values)) + 1 for values in zip(*outline, strict=True))
    size_px = min(right, image.width) - left, min(bottom, image.height) - top
    if min(size_px) > 0:
        mask = Image.new("L", size_px)
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in outline], fill=_FILL_OPACITY)
        image.paste(colour, (left, top), mask)


def encode_drawing(image: Image.Image, suffix: str) -> bytes:
    """The file of a drawn picture, with the mark by which it is known again. suffix: one of SUFFIXES."""
    file = io.BytesIO()
    if suffix == ".png":
        mark = PngInfo()
        mark.add_text("Software", _MARK)
        image.save(file, "PNG", pnginfo=mark)
    else:
        image.save(file, "JPEG", quality=92, comment=_MARK.encode())
    return file.getvalue()


def is_drawing(path: str) -> bool:
    """Tell whether a file is a picture that this program drew; anything that cannot be read is not."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return _MARK in (image.info.get("Software"), image.info.get("comment", b"").decode("utf-8", "replace"))
    except Exception:  # untrusted bytes: a file that is no picture at all is nobody's drawing
        return False
