"""The true answer to each prompt about a picture of coloured shapes; it names them left to right by their centres.

>>> red, blue = Shape("red", "circle", (60, 60, 200, 200)), Shape("blue", "square", (400, 300, 520, 420))
>>> true_answer("<CAPTION>", draw_shapes((640, 480), [red, blue]))
'a red circle and a blue square'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from florence_daemon.demo_pictures import Box, DrawnPicture, Shape, centre_of
from florence_daemon.errors import PromptError

LOCATION_BINS = 1000


def true_answer(prompt: str, picture: DrawnPicture) -> str:
    """Return what a model that sees the picture rightly answers. Raises PromptError for a prompt without a truth."""
    if prompt not in _ANSWERS:
        raise PromptError(f"no true answer is known to the prompt {prompt!r}: use one of {', '.join(_ANSWERS)}")
    return _ANSWERS[prompt](picture)


def place_of(box: Box, size_px: tuple[int, int]) -> str:
    """Return where a box lies by the thirds of the picture that hold its centre: `top left`, `left`, `centre` …"""
    x, y = centre_of(box, size_px)
    column = ("left", "", "right")[min(2, int(x * 3))]
    row = ("top", "", "bottom")[min(2, int(y * 3))]
    return f"{row} {column}".strip() or "centre"


def size_word(box: Box, size_px: tuple[int, int]) -> str:
    """Return `small`, `medium` or `large`, by bounds that lie in the middle of the gaps of SIZES."""
    share = math.sqrt((box[2] - box[0]) * (box[3] - box[1]) / (size_px[0] * size_px[1]))
    return "small" if share < 0.23 else "medium" if share < 0.38 else "large"


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
