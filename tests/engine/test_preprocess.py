"""Pictures of every format come out upright, RGB and on white; whatever is no picture says why."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from florence_daemon.engine.preprocess import FILE_LIMIT_BYTES, PIXEL_LIMIT, read_header, read_picture, to_pixels
from florence_daemon.errors import PictureError, TruncatedPicture, UnreadablePicture
from tests.reference import IMAGES, TINY_A, needs_reference

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def two_colours(mode: str = "RGB", size_px: tuple[int, int] = (40, 20)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size_px, RED)
    image.paste(BLUE, (size_px[0] // 2, 0, *size_px))
    return image.convert(mode)


def is_near(colour: object, wanted: tuple[int, int, int], tolerance: int = 12) -> bool:
    return isinstance(colour, tuple) and all(abs(a - b) <= tolerance for a, b in zip(colour, wanted, strict=True))


def png_of_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_is_read_from_bytes_and_from_a_path(format_name: str, tmp_path: Path) -> None:
    if not features.check("avif") and format_name == "AVIF":
        pytest.skip("this Pillow was built without AVIF")
    data = encode(two_colours(), format_name)
    path = tmp_path / "picture"
    path.write_bytes(data)

    for source in (data, str(path)):
        picture = read_picture(source)
        assert picture.size_px == picture.image.size == (40, 20)
        assert picture.image.mode == "RGB"
        assert is_near(picture.image.getpixel((5, 10)), RED)
        assert is_near(picture.image.getpixel((35, 10)), BLUE)


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_taken(format_name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]

    picture = read_picture(encode(frames[0], format_name, save_all=True, append_images=frames[1:]))

    assert is_near(picture.image.getpixel((8, 8)), RED)


@pytest.mark.parametrize("format_name", ["GIF", "PNG"])
def test_further_frames_are_not_even_looked_at(format_name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE) * 50]
    film = encode(frames[0], format_name, save_all=True, append_images=frames[1:])

    picture = read_picture(film[: len(film) // 2])

    assert is_near(picture.image.getpixel((8, 8)), RED)


def test_a_file_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge.webp").open("wb") as file:
        file.truncate(FILE_LIMIT_BYTES + 1)  # holes: it takes no room on the disk

    with pytest.raises(PictureError, match="is too large: 2147483649 bytes, and the limit is 2147483648"):
        read_picture(str(tmp_path / "huge.webp"))


def test_a_jpeg_with_a_second_view_is_read() -> None:
    views = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]

    picture = read_picture(encode(views[0], "MPO", save_all=True, append_images=views[1:]))

    assert is_near(picture.image.getpixel((8, 8)), RED)


# Where the upper left red corner of an upright picture lies in the file, for each orientation.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_upright_once(format_name: str, orientation: int) -> None:
    upright = Image.new("RGB", (48, 32), WHITE)
    upright.paste(RED, (0, 0, 16, 16))
    turn = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if turn is None else upright.transpose(turn)

    picture = read_picture(encode(stored, format_name, exif=exif.tobytes()))

    assert picture.size_px == (48, 32)
    assert is_near(picture.image.getpixel((5, 5)), RED, 40)
    assert all(is_near(picture.image.getpixel(at), WHITE, 40) for at in ((43, 5), (5, 27), (43, 27)))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_a_broken_exif_block_does_not_fail_the_picture(exif: bytes) -> None:
    data = encode(two_colours(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif

    assert read_picture(data[:2] + segment + data[2:]).size_px == (40, 20)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert read_picture(encode(two_colours(), "JPEG", exif=exif.tobytes())).size_px == (40, 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_put_on_white_whatever_colour_lies_under_it(mode: str) -> None:
    opaque = Image.new("L", (8, 8), 0)
    opaque.paste(255, (4, 0, 8, 8))
    image = Image.new("RGB", (8, 8)).convert({"RGBA": "RGB", "LA": "L", "PA": "P"}[mode])
    image.putalpha(opaque)
    assert image.mode == mode

    picture = read_picture(encode(image, "TIFF" if mode == "PA" else "PNG"))

    assert picture.image.getpixel((1, 1)) == WHITE
    assert picture.image.getpixel((6, 6)) == (0, 0, 0)


def test_half_transparent_is_mixed_with_white() -> None:
    picture = read_picture(encode(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG"))

    assert is_near(picture.image.getpixel((1, 1)), (255, 127, 127), 1)


def test_premultiplied_colours_are_not_darkened_twice() -> None:
    data = encode(Image.new("RGBA", (4, 4), (128, 0, 0, 128)), "TIFF")
    assert b"\x52\x01\x03\x00\x01\x00\x00\x00\x02\x00" in data  # ExtraSamples: 2, alpha beside the colours
    premultiplied = data.replace(
        b"\x52\x01\x03\x00\x01\x00\x00\x00\x02\x00", b"\x52\x01\x03\x00\x01\x00\x00\x00\x01\x00"
    )

    picture = read_picture(premultiplied)

    assert is_near(picture.image.getpixel((1, 1)), (255, 127, 127), 2)


@pytest.mark.parametrize("format_name", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_put_on_white(format_name: str) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 4, 8))

    picture = read_picture(encode(image, format_name, transparency=0))

    assert picture.image.getpixel((1, 1)) == WHITE
    assert picture.image.getpixel((6, 6)) == RED


@pytest.mark.parametrize(("mode", "key", "colour"), [("RGB", (1, 2, 3), (1, 2, 3)), ("L", 7, 7)])
def test_a_colour_that_means_transparent_is_put_on_white(mode: str, key: Any, colour: Any) -> None:
    picture = read_picture(encode(Image.new(mode, (4, 4), colour), "PNG", transparency=key))

    assert picture.image.getpixel((1, 1)) == WHITE


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_grey_palette_and_black_and_white_keep_their_colours(mode: str) -> None:
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (4, 0, 8, 8))

    picture = read_picture(encode(image.convert(mode), "PNG"))

    assert picture.image.getpixel((1, 1)) == (0, 0, 0)
    assert picture.image.getpixel((6, 6)) == WHITE


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format_name: str) -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)

    picture = read_picture(encode(Image.fromarray(ramp), format_name))

    assert np.array_equal(np.asarray(picture.image)[..., 0].ravel(), np.arange(256))


def test_16_bit_colour_keeps_its_upper_byte() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0) * 4 for _ in range(4))
    header = b"IHDR" + struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(rows), b"IEND")
    body = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)

    assert is_near(read_picture(b"\x89PNG\r\n\x1a\n" + body).image.getpixel((1, 1)), (255, 128, 0), 1)


@pytest.mark.parametrize(
    ("dtype", "top"), [(np.int32, 65535), (np.int32, 3_000_000), (np.float32, 1.0), (np.float32, 255.0)]
)
def test_deep_grey_without_a_fixed_range_is_spread(dtype: type, top: float) -> None:
    ramp = np.linspace(0, top, 256).astype(dtype).reshape(16, 16)

    grey = np.asarray(read_picture(encode(Image.fromarray(ramp), "TIFF")).image)[..., 0].ravel()

    assert grey[0] == 0
    assert grey[-1] == 255
    assert abs(int(grey[128]) - 128) <= 1


def test_floats_that_are_no_numbers_do_not_fail_the_picture() -> None:
    values = np.array([[np.nan, np.inf], [-np.inf, 1.0]], dtype=np.float32)

    assert read_picture(encode(Image.fromarray(values), "TIFF")).image.getpixel((1, 1)) == WHITE


@pytest.mark.parametrize("format_name", ["JPEG", "TIFF"])
def test_cmyk_is_not_read_as_its_negative(format_name: str) -> None:
    picture = read_picture(encode(two_colours("CMYK"), format_name))

    assert is_near(picture.image.getpixel((5, 10)), RED, 20)
    assert is_near(picture.image.getpixel((35, 10)), BLUE, 20)


def test_very_wide_and_very_tall_pictures_are_read() -> None:
    for size_px in ((60_000, 1), (1, 60_000)):
        picture = read_picture(encode(Image.new("RGB", size_px, RED), "PNG"))
        assert picture.size_px == size_px
        assert to_pixels(picture, 64).shape == (3, 64, 64)


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()

    with pytest.raises(TruncatedPicture, match=r"empty\.jpg is empty"):
        read_picture(str(path))
    with pytest.raises(PictureError, match="the picture is empty"):
        read_picture(b"")


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_says_so(format_name: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, format_name)

    with pytest.raises(TruncatedPicture, match="truncated"):
        read_picture(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "beginning", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM", b"II*\0"]
)
def test_a_file_cut_off_in_its_header_is_no_other_format(beginning: bytes) -> None:
    with pytest.raises(TruncatedPicture, match="truncated"):
        read_picture(beginning)


@pytest.mark.parametrize(("width", "height"), [(14_200, 14_200), (20_000, 20_001), (2_000_000, 2_000_000)])
def test_a_huge_picture_is_refused_from_its_header_with_both_numbers(width: int, height: int) -> None:
    with pytest.raises(PictureError, match="too large") as raised:
        read_picture(png_of_header(width, height))

    assert str(width * height) in str(raised.value)
    assert str(PIXEL_LIMIT) in str(raised.value)


@pytest.mark.parametrize("data", [b"<!DOCTYPE html><p>not found", b"%PDF-1.7", b"\0" * 64, b"x", "höher".encode()])
def test_what_is_no_picture_is_shown_by_its_beginning(data: bytes) -> None:
    with pytest.raises(PictureError, match="not a picture") as raised:
        read_picture(data)

    assert not isinstance(raised.value, TruncatedPicture), "to wait for the rest of it would be in vain"
    assert repr(data[:16]) in str(raised.value)


def test_formats_beyond_the_list_are_not_tried() -> None:
    with pytest.raises(PictureError, match=r"not a picture that can be read.*Read are JPEG, PNG"):
        read_picture(encode(two_colours(), "PPM"))


@pytest.mark.parametrize(
    ("data", "kind", "package"),
    [
        (b"\0\0\0\x18ftypheic" + b"\0" * 64, "HEIC", "florence-daemon[formats]"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 64, "JPEG XL", "pillow-jxl-plugin"),
    ],
)
def test_formats_of_the_extra_name_it_where_it_is_missing(
    data: bytes, kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)

    with pytest.raises(PictureError, match=rf"{kind}.*pip install '{re.escape(package)}'"):
        read_picture(data)


def test_heic_is_read_with_the_extra() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the formats extra (pillow-heif) is not installed")
    pillow_heif.register_heif_opener()

    assert read_picture(encode(two_colours(size_px=(64, 64)), "HEIF")).size_px == (64, 64)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadablePicture, match=r"gone\.jpg cannot be read: No such file"):
        read_picture(str(tmp_path / "gone.jpg"))
    with pytest.raises(PictureError, match="is not a file"):
        read_picture(str(tmp_path))
    with pytest.raises(PictureError, match="cannot be read"):
        read_picture("nul\0byte.jpg")


@pytest.mark.skipif(os.name == "nt", reason="a FIFO in the file system is POSIX")
def test_a_pipe_among_the_pictures_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")

    with pytest.raises(PictureError, match="is not a file"):
        read_picture(str(tmp_path / "pipe.jpg"))


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no Unicode are Linux's")
def test_a_name_that_is_no_unicode_is_read_and_can_be_printed(tmp_path: Path) -> None:
    good, bad = (os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/caf\xe9.png", b"/bad\xe9.png"))
    Path(good).write_bytes(encode(two_colours(), "PNG"))
    Path(bad).write_bytes(b"nothing")

    assert read_picture(good).size_px == (40, 20)
    with pytest.raises(PictureError) as raised:
        read_picture(bad)
    assert rb"bad\xe9.png" in str(raised.value).encode()


def test_damage_in_the_middle_never_raises_anything_else() -> None:
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    random = np.random.default_rng(3)
    for format_name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        data = bytearray(encode(noise, format_name))
        for _ in range(40):
            damaged = bytearray(data)
            for at in random.integers(0, min(len(data), 400), 6):
                damaged[at] = int(random.integers(0, 256))
            try:
                read_picture(bytes(damaged))
            except PictureError as error:
                assert str(error)


def test_pixels_are_channels_first_and_normalised() -> None:
    pixels = to_pixels(read_picture(encode(Image.new("RGB", (10, 10), (0, 127, 255)), "PNG")), 32)

    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    np.testing.assert_allclose(pixels[:, 0, 0], [-2.117904, (127 / 255 - 0.456) / 0.224, 2.64], atol=1e-5)


@needs_reference
@pytest.mark.parametrize("name", ["shapes.png", "gradient.png", "noise.png", "checker.png"])
def test_pixels_are_the_originals(name: str) -> None:
    with np.load(TINY_A / "expected.npz") as expected:
        every_96th = expected[f"{name}/pixel_slice"]

    pixels = to_pixels(read_picture(str(IMAGES / name)), 768)

    np.testing.assert_array_equal(pixels[:, ::96, ::96], every_96th)


def test_a_file_is_told_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(two_colours(), "PNG"))

    assert read_picture(str(path)).content == hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    assert read_picture(path.read_bytes()).content is None


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_header_tells_the_upright_and_the_decoded_size(tmp_path: Path, format_name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "picture"
    path.write_bytes(encode(two_colours(), format_name, exif=exif.tobytes()))
    header = read_header(str(path))
    assert header.size_px == read_picture(str(path)).size_px
    with Image.open(path) as image:
        image.load()
        assert header.decoded_px == image.size
    assert (header.orientation != 1) == (header.size_px != header.decoded_px or header.orientation == 3)
    assert header.format == format_name


@pytest.mark.parametrize("content", [b"", b"no picture at all", png_of_header(20_000, 20_000)])
def test_header_is_refused_as_the_picture_would_be(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture"
    path.write_bytes(content)
    with pytest.raises(PictureError) as of_picture:
        read_picture(str(path))
    with pytest.raises(PictureError) as of_header:
        read_header(str(path))
    assert str(of_header.value) == str(of_picture.value)
