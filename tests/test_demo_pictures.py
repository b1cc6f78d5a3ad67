"""The drawn pictures hold what their true answers say, and nothing that could be read in two ways."""

from __future__ import annotations

import io
import math
import random
from itertools import combinations

import pytest
from PIL import Image, ImageOps

from florence_daemon.demo_answers import PROMPTS, place_of, size_word, true_answer
from florence_daemon.demo_chance import MIN_CONTRAST, SIZES, contrast, draw_picture, random_size_px
from florence_daemon.demo_pictures import (
    COLOURS,
    KINDS,
    WHITE,
    DrawnPicture,
    Shape,
    cut_out,
    draw_shapes,
    encode_picture,
    luminance,
)
from florence_daemon.errors import PromptError

RED_CIRCLE = Shape("red", "circle", (60, 60, 200, 200))
BLUE_SQUARE = Shape("blue", "square", (420, 300, 520, 400))
SIZE_PX = (640, 480)


@pytest.fixture(scope="module")
def pictures() -> list[DrawnPicture]:
    rng = random.Random("test pictures")
    return [draw_picture(rng, random_size_px(rng, 64, 500)) for _ in range(200)]


def test_answers_state_names_places_and_boxes() -> None:
    picture = draw_shapes(SIZE_PX, [BLUE_SQUARE, RED_CIRCLE])

    answers = {prompt: true_answer(prompt, picture) for prompt in PROMPTS}

    caption, tags = "a red circle at the top left and a blue square at the bottom right", "red circle, blue square"
    paragraph = (
        "The image shows two shapes on a smooth light background. A medium red circle is at the top left. "
        "A small blue square is at the bottom right."
    )
    assert answers == {
        "<CAPTION>": "a red circle and a blue square",
        "<DETAILED_CAPTION>": caption,
        "<MORE_DETAILED_CAPTION>": paragraph,
        "<GENERATE_TAGS>": tags,
        "<OD>": "red circle<loc_93><loc_125><loc_312><loc_416>blue square<loc_656><loc_625><loc_812><loc_833>",
        "<ANALYZE>": "art_style: flat shapes, location: NA, text: NA, background: smooth light, "
        "image_composition: two shapes",
        "<MIXED_CAPTION>": f"{caption}\n{tags}",
        "<MIXED_CAPTION_PLUS>": f"{paragraph}\n{tags}",
    }


def test_three_shapes_are_joined_by_commas_and_and_with_the_right_article() -> None:
    star = Shape("orange", "star", (300, 20, 380, 100))

    assert (
        true_answer("<CAPTION>", draw_shapes(SIZE_PX, [star, BLUE_SQUARE, RED_CIRCLE]))
        == "a red circle, an orange star and a blue square"
    )


def test_tags_name_two_equal_shapes_once() -> None:
    twin = Shape("red", "circle", (400, 60, 500, 160))
    picture = draw_shapes(SIZE_PX, [RED_CIRCLE, twin])

    assert true_answer("<GENERATE_TAGS>", picture) == "red circle"
    assert true_answer("<CAPTION>", picture) == "a red circle and a red circle"


def test_prompt_without_a_truth_is_refused_by_name() -> None:
    with pytest.raises(PromptError, match="<OCR>"):
        true_answer("<OCR>", draw_shapes(SIZE_PX, [RED_CIRCLE]))


def test_same_seed_draws_the_same_picture_and_another_seed_another() -> None:
    first, again, other = (draw_picture(random.Random(seed), (300, 200)) for seed in (7, 7, 8))

    assert (first.image.tobytes(), first.shapes) == (again.image.tobytes(), again.shapes)
    assert first.image.tobytes() != other.image.tobytes()


def test_random_pictures_vary_in_everything_that_an_answer_names(pictures: list[DrawnPicture]) -> None:
    shapes = [(shape, picture) for picture in pictures for shape in picture.shapes]

    assert {shape.colour for shape, _ in shapes} == set(COLOURS)
    assert {shape.kind for shape, _ in shapes} == set(KINDS)
    assert {size_word(shape.box_px, picture.image.size) for shape, picture in shapes} == set(SIZES)
    assert len({place_of(shape.box_px, picture.image.size) for shape, picture in shapes}) == 9
    assert {len(picture.shapes) for picture in pictures} == {1, 2, 3}
    assert len({(picture.background.kind, picture.background.shade) for picture in pictures}) == 6


def test_plain_white_is_a_usual_background(pictures: list[DrawnPicture]) -> None:
    assert sum(picture.background == WHITE for picture in pictures) >= len(pictures) / 10


def test_shapes_lie_apart_and_in_a_clear_order(pictures: list[DrawnPicture]) -> None:
    for picture in pictures:
        for first, second in combinations((shape.box_px for shape in picture.shapes), 2):
            overlap_x = min(first[2], second[2]) - max(first[0], second[0])
            overlap_y = min(first[3], second[3]) - max(first[1], second[1])
            assert overlap_x < 0 or overlap_y < 0
            assert second[0] + second[2] - first[0] - first[2] >= 0.2 * picture.image.width * 0.99


def test_places_and_sizes_keep_away_from_the_borders_between_words(pictures: list[DrawnPicture]) -> None:
    for picture in pictures:
        width, height = picture.image.size
        for shape in picture.shapes:
            left, top, right, bottom = shape.box_px
            shares = ((left + right) / 2 / width, (top + bottom) / 2 / height)
            assert all(abs(share - line) > 0.049 for share in shares for line in (1 / 3, 2 / 3))
            size = math.sqrt((right - left) * (bottom - top) / (width * height))
            assert all(abs(size - border) > 0.02 for border in (0.23, 0.38))


def test_every_shape_contrasts_with_its_background_where_both_are_painted(pictures: list[DrawnPicture]) -> None:
    for picture in pictures:
        for shape in picture.shapes:
            left, top, right, bottom = shape.box_px
            inside = picture.image.getpixel(((left + right) // 2, round(top + 0.6 * (bottom - top))))
            assert contrast(inside, picture.background) >= MIN_CONTRAST  # type: ignore[arg-type]


def test_background_is_as_light_or_dark_as_it_is_called(pictures: list[DrawnPicture]) -> None:
    for picture in pictures:
        levels = [luminance(colour) for colour in picture.background.colours]
        assert min(levels) > 150 if picture.background.shade == "light" else max(levels) < 100


@pytest.mark.parametrize("kind", KINDS)
def test_shape_touches_all_four_sides_of_its_box(kind: str) -> None:
    image = draw_shapes((100, 100), [Shape("black", kind, (20, 30, 71, 82))]).image

    drawn = ImageOps.invert(image.convert("L")).point(lambda value: 255 if value > 24 else 0)
    assert drawn.getbbox() is not None
    assert all(abs(a - b) <= 1 for a, b in zip(drawn.getbbox() or (), (20, 30, 71, 82), strict=True))


def test_kinds_differ_in_the_area_that_they_fill() -> None:
    def filled_share(kind: str) -> float:
        image = draw_shapes((100, 100), [Shape("black", kind, (0, 0, 100, 100))]).image
        return 1 - sum(image.convert("L").tobytes()) / 255 / 100**2

    shares = [filled_share(kind) for kind in ("square", "circle", "triangle", "star")]
    assert shares == pytest.approx([1, math.pi / 4, 0.5, 0.36], abs=0.05)


@pytest.mark.parametrize(
    "shape",
    [
        Shape("pink", "circle", (0, 0, 9, 9)),
        Shape("red", "moon", (0, 0, 9, 9)),
        Shape("red", "star", (0, 0, 9, 999)),
    ],
)
def test_shape_of_unknown_name_or_outside_the_picture_is_refused(shape: Shape) -> None:
    with pytest.raises(ValueError, match=shape.name):
        draw_shapes(SIZE_PX, [shape])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_file_with_an_orientation_shows_the_picture_upright_to_whoever_obeys_it(orientation: int) -> None:
    upright = draw_shapes(SIZE_PX, [RED_CIRCLE, BLUE_SQUARE]).image

    opened = Image.open(io.BytesIO(encode_picture(upright, "PNG", orientation=orientation)))

    assert ImageOps.exif_transpose(opened).convert("RGB").tobytes() == upright.tobytes()
    assert (opened.convert("RGB").tobytes() == upright.tobytes()) == (orientation == 1)


def test_cut_out_put_on_white_is_the_picture_drawn_on_white() -> None:
    transparent = cut_out(SIZE_PX, [RED_CIRCLE, BLUE_SQUARE], hidden_rgb=(0, 200, 0))

    on_white = Image.new("RGB", SIZE_PX, "white")
    on_white.paste(transparent, mask=transparent.getchannel("A"))

    assert on_white.tobytes() == draw_shapes(SIZE_PX, [RED_CIRCLE, BLUE_SQUARE]).image.tobytes()
    assert transparent.convert("RGB").getpixel((0, 0)) == (0, 200, 0)


def test_random_sizes_span_the_bounds_and_both_orientations() -> None:
    rng = random.Random(3)
    sizes = [random_size_px(rng) for _ in range(500)]

    assert min(map(min, sizes)) < 80
    assert max(map(max, sizes)) > 3500
    assert all(64 <= side <= 4000 for size in sizes for side in size)
    assert all(0.49 < width / height < 2.04 for width, height in sizes)
    assert sum(width > height for width, height in sizes) > 150 < sum(width < height for width, height in sizes)
