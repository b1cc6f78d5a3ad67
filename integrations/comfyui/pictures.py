"""Turn ComfyUI's images, tensors of numbers from 0 to 1, into files that can be sent."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from .server import CaptionError

# Channels of an image, and what Pillow calls such.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def to_pngs(image: Any) -> list[bytes]:
    """Each image of a batch (B, H, W, C) as PNG. Raises: CaptionError, when it is none."""
    shape = tuple(image.shape)
    if len(shape) != 4 or shape[-1] not in MODES or 0 in shape:
        raise CaptionError(f"these are no images: their shape is {shape}, not (batch, height, width, 1, 3 or 4)")
    return [_to_png(each.detach().cpu().float().numpy()) for each in image]


def _to_png(pixels: np.ndarray[Any, Any]) -> bytes:
    """pixels: (H, W, C) float. A VAE may give more than 1, less than 0, or what is no number (black)."""
    values = np.clip(np.nan_to_num(pixels, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    levels = np.rint(values * 255.0).astype(np.uint8)
    picture = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # it is read once
    return file.getvalue()
