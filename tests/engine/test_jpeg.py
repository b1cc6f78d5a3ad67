"""A large JPEG is decoded at a reduced scale and is the same picture: its pixels, its size, its way up, its colours."""

from __future__ import annotations

import random
import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from florence_daemon.demo_chance import draw_picture
from florence_daemon.engine.jpeg import can_be_scaled, scales_to_try
from florence_daemon.engine.preprocess import read_picture, to_pixels
from florence_daemon.errors import PictureError

SIDE_PX = 64
SIZES_PX = [(247, 244), (403, 400), (643, 640), (963, 960)]

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def gradient(size_px: tuple[int, int]) -> Image.Image:
    across = np.linspace(0, 255, size_px[0])[None, :, None] * [1, 0, 0.5]
    down = np.linspace(0, 255, size_px[1])[:, None, None] * [0, 1, 0.5]
    return Image.fromarray((across + down).astype(np.uint8))


def text(size_px: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size_px, WHITE)
    pen = ImageDraw.Draw(image)
    for top in range(0, size_px[1], 24):
        pen.text((4, top), "The quick brown fox jumps over the lazy dog. " * 9, fill="black", font_size=20)
    return image


def foliage(size_px: tuple[int, int]) -> Image.Image:
    """Noise whose strength falls with its frequency, as that of landscapes does."""
    across, down = np.fft.fftfreq(size_px[0])[None, :, None], np.fft.fftfreq(size_px[1])[:, None, None]
    noise = np.random.default_rng(5).standard_normal((size_px[1], size_px[0], 3))
    values = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) / np.hypot(across, down).clip(1e-3), axes=(0, 1)).real
    return Image.fromarray((128 + 50 * values / values.std()).clip(0, 255).astype(np.uint8))


def noise(size_px: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(6).integers(0, 256, (*size_px[::-1], 3), dtype=np.uint8))


def shapes(size_px: tuple[int, int]) -> Image.Image:
    return draw_picture(random.Random(3), size_px).image


def shades(data: bytes, side_px: int, *, reduced: bool, fast: bool = False) -> NDArray[np.float64]:
    """The square as it is before it is normalised: (side, side, 3), 0 to 255."""
    picture = read_picture(data, side_px, fast) if reduced else read_picture(data)
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return (to_pixels(picture, side_px).transpose(1, 2, 0).astype(np.float64) * spread + mean) * 255


@pytest.mark.parametrize(("quality", "subsampling"), [(95, 0), (75, 2), (30, 1)])
@pytest.mark.parametrize("draw", [gradient, text, foliage, shapes, noise])
@pytest.mark.parametrize("size_px", SIZES_PX)
def test_pixels_are_within_one_step_of_a_full_decode(
    size_px: tuple[int, int], draw: Any, quality: int, subsampling: int
) -> None:
    data = encode(draw(size_px), quality=quality, subsampling=subsampling)

    difference = np.abs(shades(data, SIDE_PX, reduced=True) - shades(data, SIDE_PX, reduced=False))

    assert difference.mean() <= 1.0


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_soft_pictures_are_reduced_and_text_and_noise_are_decoded_in_full(size_px: tuple[int, int]) -> None:
    def is_reduced(image: Image.Image) -> bool:
        data = encode(image, quality=90)
        return bool((shades(data, SIDE_PX, reduced=True) != shades(data, SIDE_PX, reduced=False)).any())

    assert is_reduced(shapes(size_px))
    assert is_reduced(gradient(size_px))
    assert not is_reduced(text(size_px))
    assert size_px == SIZES_PX[-1] or not is_reduced(noise(size_px))  # where so many pixels become one, it is all grey


def test_reduced_pixels_lie_where_those_of_a_full_decode_do() -> None:
    """37 columns reduced to an eighth are 5, of which the last is 5/8 covered: taken whole, all would move."""
    ramp = Image.fromarray(np.repeat(np.arange(0, 37 * 6, 6, dtype=np.uint8)[None], 37, axis=0)).convert("RGB")
    data = encode(ramp, quality=100, subsampling=0)

    difference = shades(data, 4, reduced=True, fast=True) - shades(data, 4, reduced=False)

    assert np.abs(difference).max() < 6


def test_fast_reduces_as_far_as_the_side_allows() -> None:
    sizes_px = [(127, 500), (128, 500), (255, 256), (256, 256), (511, 512), (512, 512), (9000, 9000)]

    assert [scales_to_try(size_px, SIDE_PX, fast=True) for size_px in sizes_px] == [[], [2], [2], [4], [4], [8], [8]]


@pytest.mark.parametrize(
    ("size_px", "scales"),
    [((2800, 2800), []), ((12000, 12000), []), ((4032, 3024), [4, 2]), ((6000, 4000), [4, 2]), ((8000, 6000), [8, 4])],
)
def test_photographs_of_usual_cameras_are_reduced_for_768_pixels(size_px: tuple[int, int], scales: list[int]) -> None:
    assert scales_to_try(size_px, 768, fast=False) == scales


def test_fast_keeps_the_picture_and_its_size() -> None:
    picture = shapes((640, 520))
    data = encode(picture)

    assert read_picture(data, SIDE_PX, fast=True).size_px == (640, 520)
    difference = np.abs(shades(data, SIDE_PX, reduced=True, fast=True) - shades(data, SIDE_PX, reduced=False))
    assert 0 < difference.mean() < 8


def test_a_picture_that_is_not_reduced_gives_the_same_pixels_exactly() -> None:
    for data in (encode(shapes((200, 150))), encode(foliage((200, 150)).convert("L"))):
        whole, square = read_picture(data), read_picture(data, 96)

        assert square.size_px == whole.size_px == (200, 150)
        np.testing.assert_array_equal(to_pixels(square, 96), to_pixels(whole, 96))


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


@pytest.mark.parametrize("orientation", STORED)
def test_a_reduced_picture_is_turned_upright_and_keeps_its_size(orientation: int) -> None:
    upright = Image.new("RGB", (903, 701), WHITE)
    upright.paste(RED, (0, 0, 450, 350))
    turn = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(upright if turn is None else upright.transpose(turn), exif=exif.tobytes())

    picture = read_picture(data, SIDE_PX)

    assert picture.size_px == (903, 701)
    assert picture.image.size == (SIDE_PX, SIDE_PX)
    assert np.abs(shades(data, SIDE_PX, reduced=True) - shades(data, SIDE_PX, reduced=False)).max() < 40
    assert picture.image.getpixel((10, 10))[1] < 40
    assert min(picture.image.getpixel(at)[1] for at in ((54, 10), (10, 54), (54, 54))) > 220


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_grey_cmyk_and_progressive_pictures_keep_their_colours_when_reduced(mode: str, progressive: bool) -> None:
    data = encode(shapes((700, 660)).convert(mode), progressive=progressive)

    difference = np.abs(shades(data, SIDE_PX, reduced=True) - shades(data, SIDE_PX, reduced=False))

    assert 0 < difference.mean() <= 1.0
    assert read_picture(data, SIDE_PX).image.mode == "RGB"


def test_of_two_views_the_first_is_reduced() -> None:
    file = BytesIO()
    views = [Image.new("RGB", (700, 660), colour) for colour in (RED, BLUE)]
    views[0].save(file, "MPO", save_all=True, append_images=views[1:])

    picture = read_picture(file.getvalue(), SIDE_PX)

    assert picture.size_px == (700, 660)
    assert picture.image.getpixel((32, 32))[0] > 240


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "BMP"])
def test_other_formats_come_as_the_square_of_the_whole(format_name: str) -> None:
    file = BytesIO()
    shapes((700, 660)).save(file, format_name)

    square = read_picture(file.getvalue(), SIDE_PX, fast=True)

    assert (square.image.size, square.size_px) == ((SIDE_PX, SIDE_PX), (700, 660))
    np.testing.assert_array_equal(to_pixels(square, SIDE_PX), to_pixels(read_picture(file.getvalue()), SIDE_PX))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_picture_says_so_when_it_is_reduced(share: float, progressive: bool) -> None:
    data = encode(foliage((700, 660)), progressive=progressive)

    with pytest.raises(PictureError, match="truncated"):
        read_picture(data[: int(len(data) * share)], SIDE_PX)


def lossless_grey(side_px: int) -> bytes:
    """A lossless JPEG of one grey: every sample is as predicted, which its only code, one zero bit, says."""
    table = b"\xff\xc4" + struct.pack(">HB", 20, 0) + bytes([1] + [0] * 15) + b"\0"
    frame = b"\xff\xc3" + struct.pack(">HBHHB", 11, 8, side_px, side_px, 1) + bytes([1, 0x11, 0])
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([1, 0, 1, 0, 0])
    return b"\xff\xd8" + table + frame + scan + bytes(side_px * side_px // 8) + b"\xff\xd9"


def test_a_lossless_jpeg_is_never_reduced() -> None:
    """Its decoder gives whole rows whatever it is told, into room for half of one."""
    data = lossless_grey(800)
    assert not can_be_scaled(BytesIO(data))

    picture = read_picture(data, SIDE_PX, fast=True)

    assert picture.size_px == (800, 800)
    assert picture.image.getextrema() == ((128, 128),) * 3


def test_a_header_out_of_the_ordinary_is_not_reduced_and_is_read_all_the_same() -> None:
    data = encode(shapes((700, 660)))
    assert can_be_scaled(BytesIO(data))
    filled = data[:2] + b"\xff\xff" + data[2:]

    assert not can_be_scaled(BytesIO(filled))
    picture = read_picture(filled, SIDE_PX, fast=True)
    np.testing.assert_array_equal(to_pixels(picture, SIDE_PX), to_pixels(read_picture(data), SIDE_PX))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\0\x01", b"\xff\xd8" + b"\xff\xe1\xff\xff" * 9])
def test_a_header_that_ends_too_early_is_not_reduced(data: bytes) -> None:
    assert not can_be_scaled(BytesIO(data))


def test_looking_at_the_header_leaves_the_file_where_it_was() -> None:
    file = BytesIO(encode(shapes((64, 64))))
    file.seek(7)

    can_be_scaled(file)

    assert file.tell() == 7
