"""From untrusted bytes to pixels: opens a picture within limits, turns it upright, makes it RGB, and normalises it."""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from florence_daemon.errors import PictureError

PIXEL_LIMIT = 200_000_000
"""Larger pictures are refused from their header, before anything is decoded."""

# Pillow reads far more. Each format is code that runs on untrusted bytes, so only these are tried. JPEG includes MPO,
# what cameras write into a .jpg when they add a second view or a depth map.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
EXTRA_FORMATS = {"HEIC": ("HEIF", "pillow_heif"), "JPEG XL": ("JXL", "pillow_jxl")}

_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"
)
_CUT_OFF = ("truncated", "unexpected end", "end of file", "not enough image data", "broken data stream")


@dataclass(frozen=True)
class Picture:
    """A picture as a person sees it: RGB, upright, on white. size_px: (width, height)."""

    image: Image.Image
    size_px: tuple[int, int]


def read_picture(source: str | bytes) -> Picture:
    """Open a picture from its path, as `os.fsdecode` gives it, or from its file's bytes; of several frames the first.

    Raises:
        PictureError: the message says whether it is empty, truncated, too large, not a picture, or of a format that
            is not read, and names the path.
    """
    if isinstance(source, bytes):
        return _read(BytesIO(source), len(source), "the picture")
    name = os.fsencode(source).decode("utf-8", "backslashreplace")
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise PictureError(f"{name} is not a file")
        with open(source, "rb") as file:
            return _read(file, status.st_size, name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PictureError(f"{name} cannot be read: {reason}") from error


def to_pixels(picture: Picture, side_px: int) -> NDArray[np.float32]:
    """Resize to a square with bicubic and normalise, as the original does: (3, side, side) float32, channels first."""
    resized = picture.image.resize((side_px, side_px), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels - _MEAN) / _STD).transpose(2, 0, 1))


def _read(file: IO[bytes], size_bytes: int, name: str) -> Picture:
    if size_bytes == 0:
        raise PictureError(f"{name} is empty (0 bytes)")
    beginning = file.read(32)
    file.seek(0)
    image = _open(file, beginning, name)
    with image:
        _check_size(image.size, name)
        upright = _decode(image, beginning, name)
    return Picture(upright, upright.size)


def _open(file: IO[bytes], beginning: bytes, name: str) -> Image.Image:
    """Read the header: the size is known afterwards, and nothing is decoded yet."""
    _limit_pixels()
    kind = _sniff(beginning)
    formats = (*FORMATS, _register_extra(kind, name)) if kind in EXTRA_FORMATS else FORMATS
    try:
        return Image.open(file, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{name} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise PictureError(_unidentified(kind, beginning, name)) from error
    except Exception as error:  # Decoders of untrusted bytes raise whatever their parsing runs into.
        raise PictureError(_damaged(kind, error, name)) from error


def _limit_pixels() -> None:
    """Set Pillow's own limit for what the header does not tell, such as a GIF's frame larger than its screen.

    Both are global to the process, and set again for each picture, since they cost nothing and may have been reset.
    """
    Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def _check_size(size_px: tuple[int, int], name: str) -> None:
    width, height = size_px
    if width < 1 or height < 1:
        raise PictureError(f"{name} is empty: {width}×{height} pixels")
    if width * height > PIXEL_LIMIT:
        raise PictureError(
            f"{name} is too large: {width}×{height} = {width * height} pixels, and the limit is {PIXEL_LIMIT}"
        )


def _decode(image: Image.Image, beginning: bytes, name: str) -> Image.Image:
    try:
        image.load()
        return _turn_upright(_to_rgb(image), _orientation(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{name} is too large: {error}") from error
    except Exception as error:  # Decoders of untrusted bytes raise whatever their parsing runs into.
        raise PictureError(_damaged(_sniff(beginning) or image.format, error, name)) from error


def _sniff(beginning: bytes) -> str | None:
    """Name the format by a file's first bytes."""
    if beginning[:4] == b"RIFF":
        return "WebP" if beginning[8:12] == b"WEBP" else None
    if beginning[4:8] == b"ftyp":
        return _BRANDS.get(beginning[8:12])
    return next((kind for magic, kind in _BEGINNINGS.items() if beginning.startswith(magic)), None)


def _register_extra(kind: str | None, name: str) -> str:
    """Let an optional plugin register itself with Pillow; it is imported only when such a picture comes."""
    format_name, plugin = EXTRA_FORMATS[str(kind)]
    try:
        if plugin == "pillow_heif":
            import pillow_heif

            pillow_heif.register_heif_opener()
        else:
            import pillow_jxl  # noqa: F401
    except ImportError as error:
        raise PictureError(f"{name} is {kind}, which needs a plugin: pip install 'florence-daemon[formats]'") from error
    return format_name


def _unidentified(kind: str | None, beginning: bytes, name: str) -> str:
    if kind is not None:
        return f"{name} is truncated or damaged: it begins like {kind}, but its header cannot be read"
    return f"{name} is not a picture that can be read: it begins with {beginning[:16]!r}. Read are {_read_formats()}"


def _read_formats() -> str:
    return ", ".join([*FORMATS, *EXTRA_FORMATS])


def _damaged(kind: str | None, error: Exception, name: str) -> str:
    if isinstance(error, MemoryError):
        return f"{name} is too large for the memory that is free"
    cut_off = isinstance(error, EOFError) or any(sign in str(error).lower() for sign in _CUT_OFF)
    what = "truncated" if cut_off else "damaged"
    return f"{name} is {what} ({kind or 'unknown format'}): {type(error).__name__}: {error}"


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 where there is none or the block is broken: the picture itself can still be good.

    Called after `load`: TIFF and AVIF plugins have turned the picture by then, and cleared the tag.
    """
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # A broken block fails in as many ways as there are fields in it.
        return 1
    return value if isinstance(value, int) else 1


def _turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: transparency on white, deep grey scaled down, CMYK as Pillow converts it."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _put_on_white(image)
    return image.convert("RGB")


def _put_on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    with_alpha = image.convert("RGBA")
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return on_white


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey to 8 bits; Pillow's own conversion would clip everything above 255."""
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = _range(values, image.mode)
    grey = np.clip((values - low) * (255.0 / (high - low)), 0, 255).round().astype(np.uint8)
    transparent: Any = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _range(values: NDArray[np.float64], mode: str) -> tuple[float, float]:
    """Choose what is black and what is white: the type tells for 16 bits, the values for what has no fixed range."""
    if mode.startswith("I;16"):
        return 0.0, 65535.0
    low, high = float(values.min()), float(values.max())
    for full in (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0):
        if low >= 0 and high <= full:
            return 0.0, full
    return (low, high) if high > low else (low, low + 1)
