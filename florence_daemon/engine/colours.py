"""Colours of any kind to RGB: transparency on white, deep grey scaled down, CMYK as Pillow converts it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BAND_ROWS = 256


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode; one that is RGB already comes back as it is, not copied."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _put_on_white(image)
    # Pillow copies even where there is nothing to convert: 45 ms for 12 megapixels, 140 ms for 48.
    return image if image.mode == "RGB" else image.convert("RGB")


def _put_on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    with_alpha = image if image.mode == "RGBA" else image.convert("RGBA")
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return on_white


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey to 8 bits; Pillow's own conversion would clip everything above 255."""
    values: NDArray[Any] = np.asarray(image)
    low, high = _range(values, image.mode)
    transparent: Any = image.info.get("transparency")
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _BAND_ROWS):  # in bands, since float64 takes eight times the picture's memory
        band = values[top : top + _BAND_ROWS].astype(np.float64)
        scaled = np.nan_to_num((band - low) * (255.0 / (high - low)), nan=0.0, posinf=0.0, neginf=0.0)
        if isinstance(transparent, int):
            scaled[band == transparent] = 255
        grey[top : top + _BAND_ROWS] = scaled.round().clip(0, 255)
    return Image.fromarray(grey).convert("RGB")


def _range(values: NDArray[Any], mode: str) -> tuple[float, float]:
    """Choose what is black and what is white: the type tells for 16 bits, the values for what has no fixed range."""
    if mode.startswith("I;16"):
        return 0.0, 65535.0
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    for full in (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0):
        if low >= 0 and high <= full:
            return 0.0, full
    return (low, high) if high > low else (low, low + 1)
