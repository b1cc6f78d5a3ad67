"""Photographs for the benchmarks: those that scikit-image brings along, as a camera would have written them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
"""What lies in the installed package; the rest of skimage.data would come over the network."""

SIZE_PX = (4000, 3000)
# A camera's grain, in steps of 255. Without it an enlarged photograph is so smooth that its JPEG is read too quickly.
_GRAIN = 4.0


def make_photographs(count: int, directory: Path, size_px: tuple[int, int] = SIZE_PX) -> list[Path]:
    """Write JPEGs, each a crop of its own, some mirrored; those that are there already stay."""
    files = [directory / f"{size_px[0]}x{size_px[1]}-{number:03}.jpg" for number in range(count)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        directory.mkdir(parents=True, exist_ok=True)
        photographs = _find_photographs()
        for file in missing:
            _write(photographs, files.index(file), file, size_px)
    return files


def _find_photographs() -> list[Path]:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("The photographs are scikit-image's: pip install 'florence-daemon[benchmarks]'")
    data = Path(spec.origin).parent / "data"
    return [data / name for name in NAMES if (data / name).is_file()]


def _write(photographs: Sequence[Path], number: int, file: Path, size_px: tuple[int, int]) -> None:
    chance = random.Random(number)
    with Image.open(photographs[number % len(photographs)]) as opened:
        image = opened.convert("RGB")
    width = chance.uniform(0.6, 1.0) * min(image.width, image.height * size_px[0] / size_px[1])
    height = width * size_px[1] / size_px[0]
    left, top = chance.uniform(0, image.width - width), chance.uniform(0, image.height - height)
    image = image.resize(size_px, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    if chance.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    grain = np.random.default_rng(number).standard_normal((size_px[1], size_px[0], 1), dtype=np.float32) * _GRAIN
    pixels = (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)
    unfinished = file.with_suffix(".part")
    Image.fromarray(pixels).save(unfinished, "JPEG", quality=90)
    unfinished.replace(file)
