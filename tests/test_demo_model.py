"""The embedded model is a small, whole, original Florence-2, and tells through the engine what a picture shows."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from PIL import Image, ImageOps
from safetensors import safe_open

from florence_daemon.demo_answers import PROMPTS, true_answer
from florence_daemon.demo_chance import draw_picture, encode_at_random, random_size_px
from florence_daemon.demo_pictures import DrawnPicture, Shape, cut_out, draw_shapes, encode_picture
from florence_daemon.engine.backend import Backend, open_backend
from florence_daemon.engine.checkpoint import DEMO_DIRECTORY
from florence_daemon.engine.preprocess import read_picture
from florence_daemon.engine.protocol import Ask, EngineSettings
from florence_daemon.engine.tokenizer import ADDED_TOKENS

RED_CIRCLE = Shape("red", "circle", (60, 60, 200, 200))
BLUE_SQUARE = Shape("blue", "square", (420, 300, 560, 440))
SIZE_PX = (640, 480)


@pytest.fixture(scope="module")
def backend() -> Backend:
    return open_backend(EngineSettings(model="demo", device="cpu", engine="torch", offline=True))


@pytest.fixture(scope="module")
def sample() -> list[tuple[DrawnPicture, bytes]]:
    """Pictures of a seed that training does not use, of the sizes that people have."""
    rng = random.Random("the sample of the tests")
    pictures = [draw_picture(rng, random_size_px(rng, 64, 1600)) for _ in range(22)]
    pictures += [draw_picture(rng, size_px) for size_px in ((4000, 2400), (64, 64))]
    return [(picture, encode_at_random(rng, picture.image)) for picture in pictures]


def ask(backend: Backend, picture: bytes, prompt: str) -> Any:
    answers, _ = backend.answer(read_picture(picture), [Ask(prompt)])
    return answers[0].result


def caption(backend: Backend, image: Image.Image) -> str:
    return str(ask(backend, encode_picture(image), "<CAPTION>"))


@pytest.mark.parametrize("prompt", ["<CAPTION>", "<GENERATE_TAGS>"])
def test_answer_is_exactly_right_on_nearly_all_pictures(
    backend: Backend, sample: list[tuple[DrawnPicture, bytes]], prompt: str
) -> None:
    right = [ask(backend, encoded, prompt) == true_answer(prompt, picture) for picture, encoded in sample]

    assert sum(right) / len(right) >= 0.9


def test_boxes_lie_on_the_shapes_that_they_name(backend: Backend, sample: list[tuple[DrawnPicture, bytes]]) -> None:
    found = 0
    for picture, encoded in sample:
        answer = ask(backend, encoded, "<OD>")
        for name, box in zip(answer["labels"], answer["bboxes"], strict=True):
            found += any(shape.name == name and iou(shape.box_px, box) >= 0.5 for shape in picture.shapes)

    assert found / sum(len(picture.shapes) for picture, _ in sample) >= 0.85


def iou(first: tuple[int, ...], second: list[float]) -> float:
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("prompt", [prompt for prompt in PROMPTS if prompt != "<OD>"])
def test_every_prompt_is_answered_truthfully(backend: Backend, prompt: str) -> None:
    picture = draw_shapes(SIZE_PX, [RED_CIRCLE, BLUE_SQUARE])

    assert ask(backend, encode_picture(picture.image), prompt) == true_answer(prompt, picture)


def test_mirrored_picture_is_told_in_the_other_order(backend: Backend) -> None:
    image = draw_shapes(SIZE_PX, [RED_CIRCLE, BLUE_SQUARE]).image

    assert caption(backend, image) == "a red circle and a blue square"
    assert caption(backend, ImageOps.mirror(image)) == "a blue square and a red circle"


def test_swapped_channels_change_the_colours(backend: Backend) -> None:
    red, green, blue = draw_shapes(SIZE_PX, [RED_CIRCLE, BLUE_SQUARE]).image.split()

    assert caption(backend, Image.merge("RGB", (blue, green, red))) == "a blue circle and a red square"


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_picture_that_a_camera_turned_is_told_as_it_is_shown(backend: Backend, orientation: int) -> None:
    picture = draw_shapes(SIZE_PX, [RED_CIRCLE, BLUE_SQUARE])

    turned = encode_picture(picture.image, "JPEG", orientation=orientation)

    assert ask(backend, turned, "<DETAILED_CAPTION>") == true_answer("<DETAILED_CAPTION>", picture)


def test_transparent_picture_is_told_as_on_white(backend: Backend) -> None:
    encoded = encode_picture(cut_out(SIZE_PX, [RED_CIRCLE, BLUE_SQUARE], hidden_rgb=(0, 0, 90)))

    told = ask(backend, encoded, "<MORE_DETAILED_CAPTION>")

    assert told == true_answer("<MORE_DETAILED_CAPTION>", draw_shapes(SIZE_PX, [RED_CIRCLE, BLUE_SQUARE]))


@pytest.mark.parametrize("size_px", [(400, 800), (800, 400)])
def test_circle_stays_a_circle_when_the_picture_is_squashed(backend: Backend, size_px: tuple[int, int]) -> None:
    picture = draw_shapes(size_px, [Shape("green", "circle", (40, 100, 300, 360))])

    assert caption(backend, picture.image) == "a green circle"


def test_checkpoint_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in DEMO_DIRECTORY.iterdir()) <= 8 * 1024 * 1024


def test_checkpoint_has_the_files_that_an_original_fine_tune_ships_and_a_readme() -> None:
    names = {path.name for path in DEMO_DIRECTORY.iterdir() if path.name != "__pycache__"}

    assert names - {"__init__.py"} == {
        *("config.json", "preprocessor_config.json", "generation_config.json", "model.safetensors", "README.md"),
        *("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.json", "tokenizer_config.json"),
        "special_tokens_map.json",
    }


def test_weights_are_float16_under_the_names_of_the_original_layout() -> None:
    original = re.compile(
        r"image_projection|image_proj_norm\.\w+|image_pos_embed\.(row|column)_embeddings\.weight"
        r"|visual_temporal_embed\.pos_idx_to_embed|vision_tower\.convs\.\d\.(proj|norm)\.\w+"
        r"|vision_tower\.blocks\.\d\.0\.(spatial|channel)_block\."
        r"(conv[12]\.fn\.dw|(window|channel)_attn\.(norm|fn\.(qkv|proj))|ffn\.(norm|fn\.net\.fc[12]))\.\w+"
        r"|language_model\.(final_logits_bias|model\.(shared\.weight|(encoder|decoder)\.[\w.]+))"
    )
    with safe_open(DEMO_DIRECTORY / "model.safetensors", framework="np") as weights:
        names = list(weights.keys())
        types = {weights.get_slice(name).get_dtype() for name in names}
        projection = weights.get_slice("image_projection").get_shape()
        rows = weights.get_slice("language_model.model.shared.weight").get_shape()[0]

    config = json.loads((DEMO_DIRECTORY / "config.json").read_text(encoding="utf-8"))
    assert [name for name in names if not original.fullmatch(name)] == []
    assert types == {"F16"}
    assert projection == [config["vision_config"]["dim_embed"][-1], config["projection_dim"]]
    assert rows == config["vocab_size"] == config["text_config"]["vocab_size"]


def test_vocabulary_is_numbered_as_barts_with_the_added_tokens_behind_it() -> None:
    vocabulary, added = (
        json.loads((DEMO_DIRECTORY / name).read_text(encoding="utf-8")) for name in ("vocab.json", "added_tokens.json")
    )

    assert [vocabulary[token] for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert vocabulary["<mask>"] == max(vocabulary.values()) == len(vocabulary) - 1
    assert added == {token: len(vocabulary) + index for index, token in enumerate(ADDED_TOKENS)}
