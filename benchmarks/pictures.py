"""Measure what reading a photograph costs, in full and reduced, and how far the pixels are apart.

    python -m benchmarks.pictures [--side 768] [--photographs 4] [--runs 2]

For each size: what a full decode, `read_picture` and `fast_decode` take up to the finished pixels, the median over
photographs (scikit-image's, enlarged, with a camera's grain: soft) and over the same ones shrunk and put side by side,
which are sharper than any camera's; the mean difference from the full decode in steps of 255, its median and its
largest over the pictures, and the largest of any one value. "Held up" is how long another thread waited to run
meanwhile, at most.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.photographs import make_photographs
from florence_daemon.engine.preprocess import read_picture, to_pixels

SIZES_PX = ((4032, 3024), (6000, 4000), (8064, 6048))
FORMS = ((95, 0), (85, 1), (75, 2))
"""JPEG qualities and chroma subsamplings: 4:4:4, 4:2:2, 4:2:0."""
_SPREAD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None] * 255

Pixels = NDArray[np.float32]


def read(data: bytes, side_px: int, way: str) -> Pixels:
    """Read as one of the contenders does."""
    if way == "full":
        return to_pixels(read_picture(data), side_px)
    return to_pixels(read_picture(data, side_px, fast=way == "fast"), side_px)


def measure(work: Callable[[], Pixels], runs: int) -> tuple[Pixels, float, float]:
    """What came out, the shortest time, and how long another thread was held up at most; both in milliseconds."""
    taken_s, gaps_s, is_over = [], [0.0], threading.Event()

    def tick() -> None:
        before_s = time.perf_counter()
        while not is_over.is_set():
            time.sleep(0.0005)
            gaps_s.append(time.perf_counter() - before_s)
            before_s += gaps_s[-1]

    thread = threading.Thread(target=tick)
    thread.start()
    for _ in range(runs):
        started_s = time.perf_counter()
        pixels = work()
        taken_s.append(time.perf_counter() - started_s)
    is_over.set()
    thread.join()
    return pixels, 1000 * min(taken_s), 1000 * max(gaps_s)


def encodings(file: Path, size_px: tuple[int, int], kind: str) -> list[bytes]:
    """One photograph in all forms. kind: soft, as it is; sharp, shrunk and put side by side until it is as large."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if kind == "sharp":
        tile = np.asarray(image.resize((512, 384), Image.Resampling.LANCZOS))
        repeats = (-(-size_px[1] // 384), -(-size_px[0] // 512), 1)
        image = Image.fromarray(np.tile(tile, repeats)[: size_px[1], : size_px[0]])
    return [_encode(image, quality, subsampling) for quality, subsampling in FORMS]


def _encode(image: Image.Image, quality: int, subsampling: int) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--side", type=int, default=768, help="side of the square in pixels")
    parser.add_argument("--photographs", type=int, default=4, help="photographs of each size")
    parser.add_argument("--runs", type=int, default=2, help="repetitions; the shortest time counts")
    arguments = parser.parse_args()
    print("| size | pictures | way | ms | held up, ms | mean difference | largest mean | largest |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for size_px in SIZES_PX:
            files = make_photographs(arguments.photographs, Path(directory), size_px)
            for kind in ("soft", "sharp"):
                _print_rows(files, size_px, kind, arguments.side, arguments.runs)


def _print_rows(files: list[Path], size_px: tuple[int, int], kind: str, side_px: int, runs: int) -> None:
    ways = ("full", "careful", "fast")
    taken_ms: dict[str, list[float]] = {way: [] for way in ways}
    held_ms = dict.fromkeys(ways, 0.0)
    means: dict[str, list[float]] = {way: [] for way in ways}
    largest = dict.fromkeys(ways, 0.0)
    for data in (data for file in files for data in encodings(file, size_px, kind)):
        full: Pixels | None = None
        for way in ways:
            pixels, way_ms, way_held_ms = measure(lambda data=data, way=way: read(data, side_px, way), runs)  # type: ignore[misc]
            full = pixels if full is None else full
            difference = np.abs(pixels - full) * _SPREAD
            taken_ms[way].append(way_ms)
            means[way].append(float(difference.mean()))
            held_ms[way], largest[way] = max(held_ms[way], way_held_ms), max(largest[way], float(difference.max()))
    for way in ways:
        print(
            f"| {size_px[0]} × {size_px[1]} | {kind} | {way} | {statistics.median(taken_ms[way]):.0f} | "
            f"{held_ms[way]:.0f} | {statistics.median(means[way]):.2f} | {max(means[way]):.2f} | {largest[way]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
