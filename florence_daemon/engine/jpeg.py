"""Whether a JPEG may be decoded at a half, a quarter or an eighth of its size, which takes a fraction of the time.

libjpeg gives these scales by computing fewer coefficients of each block. Resized to the model's square, such a picture
is not quite the one that a full decode gives. How far they are apart depends on what is in it: photographs of a camera
are as soft as to lose nothing, text and fine textures are not. So it is found out for each picture, by decoding it at
two scales: where the finer one changes little, a full decode changes less. `python -m benchmarks.pictures` measures it.
"""

from __future__ import annotations

from typing import IO

from PIL import Image, ImageChops, ImageStat

# Steps of 255 by which the squares from two neighbouring scales may differ on average. The finer of them is then at
# most 0.75 times as far from a full decode: the largest ratio over 576 photographs, textures and noises, sharp and
# soft, of four qualities and three chroma subsamplings.
NEAR = 1.25
# How many times the wanted side a reduced picture has. 1.9 lets in a telephone's 4032 × 3024, halved, for 768. From 5
# times on, both scales blur small print in the same way, and no longer tell how black on white rings and is cut off.
_FEWEST_SIDES, _MOST_SIDES = 1.9, 3.8

_START_OF_IMAGE, _START_OF_SCAN = b"\xff\xd8", 0xDA
_WITHOUT_LENGTH = (*range(0xC0), *range(0xD0, 0xDA), 0xFF)
# Baseline, extended and progressive frames, with Huffman's coding or arithmetic. What the other frames are (lossless,
# hierarchical) cannot be scaled, and Pillow makes room for the scaled rows alone.
_SCALABLE_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # Huffman tables, a reserved marker, arithmetic coding's conditions
_HEADER_LIMIT_BYTES = 16 * 1024 * 1024


def scales_to_try(size_px: tuple[int, int], side_px: int, fast: bool) -> list[int]:
    """List by what a JPEG's sides are divided to decode it for a square of side_px; none where that is not worth it.

    fast: the one that leaves the sides at least as long as the square's. Otherwise two: the second is taken when its
    square is near that of the first.
    """
    sides = min(size_px) / side_px
    if fast:
        return [scale for scale in (8, 4, 2) if sides >= scale][:1]
    return next(([2 * scale, scale] for scale in (4, 2) if _FEWEST_SIDES <= sides / scale < _MOST_SIDES), [])


def are_near(square: Image.Image, other: Image.Image) -> bool:
    """Whether two squares differ so little that a full decode would be as near."""
    means = ImageStat.Stat(ImageChops.difference(square, other)).mean
    return sum(means) / len(means) <= NEAR


def can_be_scaled(file: IO[bytes]) -> bool:
    """Whether a JPEG's frame is one that libjpeg scales; reads its header, and leaves the file where it was.

    Anything out of the ordinary before the first scan is a no: what is read here must be what libjpeg reads too.
    """
    before = file.tell()
    try:
        file.seek(0)
        return _frames(file) in [[frame] for frame in _SCALABLE_FRAMES]
    finally:
        file.seek(before)


def _frames(file: IO[bytes]) -> list[int]:
    """List the markers of the frames up to the first scan; none where the header is not a plain chain of segments."""
    frames: list[int] = []
    if file.read(2) != _START_OF_IMAGE:
        return frames
    while file.tell() < _HEADER_LIMIT_BYTES:
        head = file.read(4)
        length_bytes = int.from_bytes(head[2:], "big")
        if len(head) < 4 or head[0] != 0xFF or head[1] in _WITHOUT_LENGTH or length_bytes < 2:
            return []
        if head[1] == _START_OF_SCAN:
            return frames
        if 0xC0 <= head[1] <= 0xCF and head[1] not in _NO_FRAMES:
            frames.append(head[1])
        file.seek(length_bytes - 2, 1)
    return []
