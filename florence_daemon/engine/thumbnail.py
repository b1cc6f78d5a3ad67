"""The process that makes thumbnails: opens untrusted pictures within limits, and answers with small WebP files.

It is started when the page wants one, and ended when it wants none any more (`florence_daemon/thumbnails.py`).
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import sys
from io import BytesIO
from typing import IO

from florence_daemon.engine.preprocess import read_picture
from florence_daemon.errors import FlorenceError
from florence_daemon.folders.atomic import Directory
from florence_daemon.thumbnails import ANSWER

# The longer side; cards of the page are a good 300 wide, on screens with up to twice as many pixels.
SIDE_PX = 480
QUALITY = 78
# Larger files are not shown small: they are read whole, for no link on the way to them may be followed.
MOST_BYTES = 256 * 2**20
# What this process may take for itself: 200 million pixels in RGB are 600 MB, and are held twice while they are turned.
MEMORY_BYTES = 1536 * 2**20
# How much likelier than others the kernel ends this process when memory is short, -1000 to 1000.
OOM_SCORE = 900


def main() -> None:
    """Answer requests from standard input, a line of JSON each, until it is closed."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    hold_back()
    with contextlib.suppress(BrokenPipeError):
        for line in sys.stdin.buffer:
            answer(json.loads(line), answers)


def answer(request: dict[str, str], answers: IO[bytes]) -> None:
    """Answer one request: `root` (no link is followed below it) and `path`."""
    try:
        is_made, body = True, make(read(request["root"], request["path"]))
    except FlorenceError as error:
        is_made, body = False, str(error).encode("utf-8", "backslashreplace")
    except OSError as error:
        is_made, body = False, f"it cannot be read: {error.strerror}".encode()
    answers.write(ANSWER.pack(is_made, len(body)) + body)
    answers.flush()


def read(root: str, path: str) -> bytes:
    """The file's bytes. Raises: OSError."""
    directory, name = os.path.split(path)
    with Directory(directory, root) as opened:
        content = opened.read(name, MOST_BYTES)
    if content is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return content


def make(content: bytes) -> bytes:
    """The picture as a WebP file of at most `SIDE_PX`, upright, with nothing else in it.

    A square is what is decoded fast; none of its sides is shorter than that of the thumbnail. Raises: PictureError.
    """
    picture = read_picture(content, SIDE_PX, fast=True)
    scale = min(1.0, SIDE_PX / max(picture.size_px))
    width, height = (max(1, round(side * scale)) for side in picture.size_px)
    made = BytesIO()
    picture.image.resize((width, height)).save(made, "WEBP", quality=QUALITY)
    return made.getvalue()


def hold_back() -> None:
    """Limit this process where the system can: its memory, what it may write (nothing), its turn at the processor."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has none of it, others lack some.
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        os.nice(5)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(OOM_SCORE))
