"""From untrusted bytes to pixels: opens a picture within limits, turns it upright, makes it RGB, and normalises it."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from florence_daemon.engine.colours import to_rgb
from florence_daemon.engine.jpeg import are_near, can_be_scaled, scales_to_try
from florence_daemon.errors import PictureError, TruncatedPicture, UnreadablePicture

PIXEL_LIMIT = 200_000_000
"""Larger pictures are refused from their header, before anything is decoded."""

FILE_LIMIT_BYTES = 2 * 2**30
"""Larger files are refused: pictures within the limit of pixels are smaller, and some decoders take a whole file."""

# Pillow reads far more. Each format is code that runs on untrusted bytes, so only these are tried. JPEG includes MPO,
# what cameras write into a .jpg when they add a second view or a depth map.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# Pillow's name for it, the plugin that reads it, and what to install for that.
EXTRA_FORMATS = {
    "HEIC": ("HEIF", "pillow_heif", "florence-daemon[formats]"),
    "JPEG XL": ("JXL", "pillow_jxl", "pillow-jxl-plugin"),
}

T = TypeVar("T")

_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
# (3, 256): each value that a pixel can have, normalised, for each channel. To look them up gives the same floats as to
# compute them, in a sixth of the time.
_NORMALISED = ((np.arange(256, dtype=np.float32)[:, None] / np.float32(255) - _MEAN) / _STD).T.copy()

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
_SIDEWAYS = (5, 6, 7, 8)
# Their plugins turn the pixels as they decode them, and give the upright size before that.
_TURN_THEMSELVES = ("TIFF", "HEIF", "JXL")

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
    """A picture as a person sees it: RGB, upright, on white.

    image: the whole picture, or the square that `read_picture` was asked for.
    size_px: (width, height) of the whole picture, whatever image is.
    content: 16 bytes of BLAKE2b that stand for the file's bytes; None for what did not come from a file.
    """

    image: Image.Image
    size_px: tuple[int, int]
    content: bytes | None = None


def read_picture(source: str | bytes, side_px: int | None = None, fast: bool = False) -> Picture:
    """Open a picture from its path, as `os.fsdecode` gives it, or from its file's bytes; of several frames the first.

    side_px: resize to the square of this side, which lets a large JPEG be decoded at a reduced scale where the pixels
        stay within 1/255 of those of a full decode, on average. All others are exactly those of a full decode.
    fast: reduce as far as the side allows, also where the pixels change more.

    Raises:
        PictureError: the message says whether it is empty, truncated, too large, not a picture, or of a format that
            is not read, and names the path.
    """
    if isinstance(source, bytes):
        return _read(BytesIO(source), len(source), "the picture", side_px, fast)
    with _open_file(source) as (file, size_bytes, name):
        content = _digest(file)
        return replace(_read(file, size_bytes, name, side_px, fast), content=content)


def read_file(path: str, most_bytes: int) -> tuple[bytes | None, bytes]:
    """The bytes of a picture's file, None where there are more than so many, and what stands for them.

    Raises: PictureError, as `read_picture` where the file itself cannot be read.
    """
    with _open_file(path) as (file, size_bytes, _):
        digest = _digest(file)
        return (file.read() if size_bytes <= most_bytes else None), digest


@dataclass(frozen=True)
class Header:
    """What a picture's file says before anything is decoded.

    size_px: (width, height) of the upright picture. decoded_px: of what comes out of the decoder, which differs where
    only EXIF tells that the picture lies on its side. orientation: EXIF's, 1 where the decoder turns it itself.
    format: Pillow's name, `JPEG`.
    """

    size_px: tuple[int, int]
    decoded_px: tuple[int, int]
    orientation: int
    format: str


def read_header(path: str) -> Header:
    """Open a picture as `read_picture` does, but decode nothing. Raises: PictureError, as there."""
    with _open_file(path) as (file, size_bytes, name):
        return _open(file, size_bytes, name, _header)


@contextmanager
def _open_file(path: str) -> Iterator[tuple[IO[bytes], int, str]]:
    """The file, its size in bytes, and its name for messages. Raises: PictureError, also where the block fails."""
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise PictureError(f"{name} is not a file")
        if status.st_size > FILE_LIMIT_BYTES:
            raise PictureError(f"{name} is too large: {status.st_size} bytes, and the limit is {FILE_LIMIT_BYTES}")
        with open(path, "rb") as file:
            yield file, status.st_size, name
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadablePicture(f"{name} cannot be read: {reason}") from error


def _digest(file: IO[bytes]) -> bytes:
    """What stands for the file's bytes; decoding then finds them in memory."""
    digest = hashlib.blake2b(digest_size=16)
    while piece := file.read(1 << 20):
        digest.update(piece)
    file.seek(0)
    return digest.digest()


def to_pixels(picture: Picture, side_px: int) -> NDArray[np.float32]:
    """Resize to a square with bicubic and normalise, as the original does: (3, side, side) float32, channels first."""
    square = _resize(picture.image, side_px)
    pixels = np.empty((3, side_px, side_px), np.float32)
    for normalised, channel, into in zip(_NORMALISED, square.split(), pixels, strict=True):
        np.take(normalised, np.asarray(channel), out=into, mode="clip")  # mode: else numpy copies `into` first
    return pixels


@dataclass(frozen=True)
class _Source:
    """What messages say about a file that is being read."""

    name: str
    size_bytes: int
    beginning: bytes

    @property
    def kind(self) -> str | None:
        """The format by the first bytes."""
        if self.beginning[:4] == b"RIFF":
            return "WebP" if self.beginning[8:12] == b"WEBP" else None
        if self.beginning[4:8] == b"ftyp":
            return _BRANDS.get(self.beginning[8:12])
        return next((kind for magic, kind in _BEGINNINGS.items() if self.beginning.startswith(magic)), None)


def _read(file: IO[bytes], size_bytes: int, name: str, side_px: int | None, fast: bool) -> Picture:
    def decode(image: Image.Image) -> Picture:
        square = None if side_px is None else _decode_reduced(image, file, side_px, fast)
        return square or _decode(image, side_px)

    return _open(file, size_bytes, name, decode)


def _open(file: IO[bytes], size_bytes: int, name: str, take: Callable[[Image.Image], T]) -> T:
    """What `take` makes of the picture, which is opened and not yet decoded. Raises: PictureError."""
    if size_bytes == 0:
        raise TruncatedPicture(f"{name} is empty (0 bytes)")
    source = _Source(name, size_bytes, file.read(32))
    file.seek(0)
    formats = (*FORMATS, _register_extra(source)) if source.kind in EXTRA_FORMATS else FORMATS
    _calm_pillow()
    try:
        with Image.open(file, formats=formats) as image:
            _check_size(image.size, name)
            return take(image)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(source) from error
    except Exception as error:  # Decoders of untrusted bytes raise whatever their parsing runs into.
        raise _damaged(source, error) from error


def _header(image: Image.Image) -> Header:
    turns_itself = image.format in _TURN_THEMSELVES
    orientation = _orientation(image) if _has_exif_ahead(image) and not turns_itself else 1
    upright_px = image.size[::-1] if orientation in _SIDEWAYS else image.size
    return Header(upright_px, image.size, orientation, image.format or "")


def _has_exif_ahead(image: Image.Image) -> bool:
    """Whether EXIF can be had without decoding: Pillow looks for a PNG's behind the pixels, where hardly any has it."""
    return image.format != "PNG" or "exif" in image.info or "Raw profile type exif" in image.info


def _decode(image: Image.Image, side_px: int | None) -> Picture:
    image.load()
    upright = _turn_upright(to_rgb(image), _orientation(image))
    return Picture(upright if side_px is None else _resize(upright, side_px), upright.size)


def _decode_reduced(image: Image.Image, file: IO[bytes], side_px: int, fast: bool) -> Picture | None:
    """Decode a large JPEG at a scale that serves, None where there is none. image: opened, not yet decoded."""
    scales = scales_to_try(image.size, side_px, fast) if image.format in ("JPEG", "MPO") else []
    if not scales or not can_be_scaled(file):
        return None
    before = None
    for scale in scales:
        square = _decode_square(file, side_px, scale)
        if fast or (before is not None and are_near(before, square)):
            orientation = _orientation(image)
            size_px = image.size[::-1] if orientation in _SIDEWAYS else image.size
            return Picture(_turn_upright(square, orientation), size_px)
        before = square
    return None


def _decode_square(file: IO[bytes], side_px: int, scale: int) -> Image.Image:
    """Decode a JPEG at 1 / scale, and resize it; it is turned upright afterwards, when little is left to turn."""
    file.seek(0)
    with Image.open(file, formats=("JPEG",)) as image:
        width, height = image.size
        image.draft(None, (width // scale, height // scale))
        image.load()
        # Of the last column and row, the whole picture can cover a part only.
        return _resize(to_rgb(image), side_px, (0, 0, width / scale, height / scale))


def _resize(image: Image.Image, side_px: int, box_px: tuple[float, float, float, float] | None = None) -> Image.Image:
    return image.resize((side_px, side_px), Image.Resampling.BICUBIC, box_px)


def _calm_pillow() -> None:
    """Let Pillow warn of nothing, and set its own limit for what a header does not tell, such as a GIF's larger frame.

    It warns of every odd EXIF block, and refuses only at twice its limit. All this is global to the process, and set
    again for each picture, since that costs nothing and somebody may have reset it.
    """
    Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def _check_size(size_px: tuple[int, int], name: str) -> None:
    """Refuse by the header: nothing is decoded yet."""
    width, height = size_px
    if width < 1 or height < 1:
        raise PictureError(f"{name} is empty: {width}×{height} pixels")
    if width * height > PIXEL_LIMIT:
        raise PictureError(_too_large(name, width * height))


def _too_large(name: str, pixels: object) -> str:
    return f"{name} is too large: {pixels} pixels, and the limit is {PIXEL_LIMIT}"


def _register_extra(source: _Source) -> str:
    """Let an optional plugin register itself with Pillow; it is imported only when such a picture comes."""
    format_name, plugin, package = EXTRA_FORMATS[str(source.kind)]
    try:
        if plugin == "pillow_heif":
            import pillow_heif

            pillow_heif.register_heif_opener()
        else:
            importlib.import_module(plugin)
    except ImportError as error:
        hint = f"pip install '{package}'"
        raise PictureError(f"{source.name} is {source.kind}, which needs a plugin that is not here: {hint}") from error
    return format_name


def _unidentified(source: _Source) -> PictureError:
    if source.kind is not None:
        return TruncatedPicture(
            f"{source.name} is truncated or damaged: it begins like {source.kind}, but its header cannot be read"
        )
    read = ", ".join([*FORMATS, *EXTRA_FORMATS])
    beginning = source.beginning[:16]
    return PictureError(
        f"{source.name} is not a picture that can be read: it begins with {beginning!r}. Read are {read}"
    )


def _damaged(source: _Source, error: Exception) -> PictureError:
    if isinstance(error, MemoryError):
        return UnreadablePicture(f"{source.name} is too large for the memory that is free")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = re.search(r"\d+", str(error))
        return PictureError(_too_large(source.name, pixels[0] if pixels else "too many"))
    cut_off = _is_cut_off(source, error)
    what, kind = ("truncated", TruncatedPicture) if cut_off else ("damaged", PictureError)
    return kind(f"{source.name} is {what} ({source.kind or 'unknown format'}): {type(error).__name__}: {error}")


def _is_cut_off(source: _Source, error: Exception) -> bool:
    """Tell a file that ends too early from one that is wrong; WebP's decoder does not say, but its header does."""
    if source.kind == "WebP" and int.from_bytes(source.beginning[4:8], "little") + 8 > source.size_bytes:
        return True
    return isinstance(error, EOFError) or any(sign in str(error).lower() for sign in _CUT_OFF)


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
