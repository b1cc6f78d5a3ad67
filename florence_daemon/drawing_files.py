"""Where drawn pictures go: what each is called, and that none is written over a picture of yours."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from florence_daemon.errors import SidecarError, UsageError
from florence_daemon.folders.atomic import Directory
from florence_daemon.logs import printable
from florence_daemon.tasks import TASKS, Task

# What is added to a picture's name in a folder of drawn ones.
DRAWN = ".drawn.png"
_WITHOUT_PLACES = ("text", "tags")


def check_task(task: Task) -> None:
    """Raises: UsageError when a task's answer has no places."""
    if task.answer in _WITHOUT_PLACES:
        drawable = ", ".join(each.token for each in TASKS if each.answer not in _WITHOUT_PLACES)
        raise UsageError(f"--draw: {task.token} answers with words, not places; these answer with places: {drawable}")


def choose_names(images: Sequence[str], to: str) -> dict[str, str]:
    """The file that each picture is drawn into. to: a file for one picture, a folder for several.

    In a folder, a.jpg becomes a.drawn.png, the next a of another place a-2.drawn.png.
    Raises: UsageError when that would be one of the pictures, or a file that this program has not drawn.
    """
    if _is_folder(to):
        chosen = _names_in(to, images)
    elif len(images) == 1:
        chosen = {images[0]: to}
    else:
        raise UsageError(
            f"--draw {to}: this is one file, and there are {len(images)} pictures; give a folder, as in out/"
        )
    for target in chosen.values():
        _check(target, images)
    return chosen


def _is_folder(path: str) -> bool:
    return path.endswith(("/", os.sep)) or os.path.isdir(path) or not os.path.splitext(path)[1]


def _names_in(folder: str, images: Sequence[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for image in dict.fromkeys(images):
        stem = os.path.splitext(os.path.basename(image))[0]
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        chosen[image] = os.path.join(folder, name + DRAWN)
    return chosen


def _check(target: str, images: Sequence[str]) -> None:
    from florence_daemon.drawing import SUFFIXES, is_drawing

    if os.path.splitext(target)[1].lower() not in SUFFIXES:
        raise UsageError(f"--draw {target}: write a name that ends in {', '.join(SUFFIXES)}, or a folder")
    if any(_is_same(target, image) for image in images):
        raise UsageError(f"--draw {target}: this is one of the pictures, which are never written over")
    if os.path.lexists(target) and not is_drawing(target):
        raise UsageError(f"--draw {target}: there is a file already that was not drawn by this program; name another")


def _is_same(target: str, image: str) -> bool:
    if os.path.realpath(target) == os.path.realpath(image):
        return True
    try:
        return os.path.samefile(target, image)
    except OSError:
        return False


def draw_file(image: str, result: dict[str, Any], target: str) -> None:
    """Draw an answer into a copy of a picture, upright, and say so. Raises: PictureError, SidecarError."""
    from florence_daemon.drawing import draw_places, encode_drawing, is_drawing, places_of
    from florence_daemon.engine.preprocess import read_picture
    from florence_daemon.labels import has_font_for

    places = places_of(result)
    drawn = draw_places(read_picture(image).image, places)
    content = encode_drawing(drawn, os.path.splitext(target)[1].lower())
    folder, name = os.path.split(os.path.abspath(target))
    try:
        os.makedirs(folder, exist_ok=True)
        with Directory(folder) as directory:
            if not directory.write(name, content, partial(is_drawing, target)):
                raise SidecarError(f"{target}: there is a file by now that was not drawn by this program")
    except OSError as error:
        raise SidecarError(f"{target}: cannot be written: {error.strerror or error}") from error
    print(f"{printable(image)}: {len(places)} drawn into {printable(target)}", file=sys.stderr, flush=True)
    if not all(has_font_for(place.label) for place in places):
        print(
            "some labels hold letters that no font here has, shown as ?; on Debian: apt install fonts-noto-cjk, "
            "or another that has them",
            file=sys.stderr,
        )
