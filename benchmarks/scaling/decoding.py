"""One core decodes photographs of 12 megapixels: how many a second, and how many bytes they are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.photographs import SIZE_PX, make_photographs
from florence_daemon.engine.preprocess import read_picture, to_pixels

# The side of the square that published checkpoints see.
SIDE_PX = 768


def decoding(directory: Path, *, quick: bool) -> dict[str, Any]:
    """In one thread, from the file to the pixels that the model sees, as set by default and with `fast_decode`."""
    files = make_photographs(2 if quick else 12, directory, (640, 480) if quick else SIZE_PX)
    return {
        "photographs": len(files),
        "side_px": SIDE_PX,
        "size_px": list(SIZE_PX),
        "careful_per_s": round(_per_s(files, fast=False), 2),
        "fast_per_s": round(_per_s(files, fast=True), 2),
        "file_bytes": round(fmean(file.stat().st_size for file in files)),
    }


def _per_s(files: Sequence[Path], *, fast: bool) -> float:
    """Pictures a second of one core; the best of two passes, of which the first may wait for the disk."""
    taken_s = []
    for _ in range(2):
        began_s = time.perf_counter()
        for file in files:
            to_pixels(read_picture(file.read_bytes(), SIDE_PX, fast=fast), SIDE_PX)
        taken_s.append(time.perf_counter() - began_s)
    return len(files) / min(taken_s)
