"""Training batches: drawn pictures, questions about them and true answers."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from florence_daemon.demo_answers import true_answer
from florence_daemon.demo_chance import draw_picture, encode_at_random, random_size_px
from florence_daemon.demo_pictures import COLOURS, KINDS, DrawnPicture
from florence_daemon.engine.preprocess import read_picture
from florence_daemon.tasks import fed_text, find_task

from .network import GRID_SIDE, IMAGE_SIDE_PX
from .tokenizer import PAD

BACKGROUNDS = ["smooth light", "smooth dark", "textured light", "textured dark"]
QUESTIONS_PER_PICTURE = 2  # the vision tower costs most of a step: ask twice about what it has seen

# How often each prompt is asked. Short answers teach colour and shape, boxes need the most practice.
_SHARES = {
    "<CAPTION>": 5,
    "<GENERATE_TAGS>": 3,
    "<OD>": 6,
    "<DETAILED_CAPTION>": 3,
    "<MORE_DETAILED_CAPTION>": 3,
    "<ANALYZE>": 1,
    "<MIXED_CAPTION>": 1.5,
    "<MIXED_CAPTION_PLUS>": 1.5,
}
# Boxes are taught on a grid of 100 lines: a pixel of the input is 8 bins wide, finer targets would be noise.
_TAUGHT_BIN = 10
_IGNORED = -100


@dataclass(frozen=True)
class Question:
    """One question of a batch. picture: its index in the batch; ids with <s> and </s>."""

    picture: int
    prompt_ids: list[int]
    answer_ids: list[int]


@dataclass(frozen=True)
class Lesson:
    """One batch.

    pixels: (B, 3, side, side) uint8. colours, kinds: (B, cells) int64, the shape whose centre lies in the cell, the
    last class for none. boxes: (B, cells, 4) float32, 0 to 1, NaN where there is none. backgrounds: (B,) int64, the
    index of its look.
    """

    pixels: NDArray[np.uint8]
    questions: list[Question]
    colours: NDArray[np.int64]
    kinds: NDArray[np.int64]
    boxes: NDArray[np.float32]
    backgrounds: NDArray[np.int64]


def draw_lesson(tokenizer: Tokenizer, seed: str, batch: int) -> Lesson:
    """Draw one batch; the same seed gives the same batch."""
    rng = random.Random(seed)
    pictures = [draw_picture(rng, size_px=_training_size_px(rng)) for _ in range(batch)]
    pixels = np.stack([_as_seen(rng, picture) for picture in pictures])
    questions = [
        Question(index, _prompt_ids(tokenizer, prompt), tokenizer.encode(taught_answer(prompt, picture)).ids)
        for index, picture in enumerate(pictures)
        for prompt in _choose_prompts(rng)
    ]
    backgrounds = [BACKGROUNDS.index(picture.background.look) for picture in pictures]
    return Lesson(pixels, questions, *_cell_targets(pictures), np.array(backgrounds))


def _training_size_px(rng: random.Random) -> tuple[int, int]:
    """Above some 700 pixels a size looks like any other once it is squashed, but takes long to draw."""
    return random_size_px(rng, 64, 640) if rng.random() < 0.98 else random_size_px(rng, 640, 2000)


def _as_seen(rng: random.Random, picture: DrawnPicture) -> NDArray[np.uint8]:
    decoded = read_picture(encode_at_random(rng, picture.image)).image
    squashed = decoded.resize((IMAGE_SIDE_PX, IMAGE_SIDE_PX), Image.Resampling.BICUBIC)  # as the engine does
    return np.asarray(squashed, dtype=np.uint8).transpose(2, 0, 1)


def _choose_prompts(rng: random.Random) -> list[str]:
    chosen: list[str] = []
    while len(chosen) < QUESTIONS_PER_PICTURE:
        prompt = rng.choices(list(_SHARES), weights=list(_SHARES.values()))[0]
        if prompt not in chosen:
            chosen.append(prompt)
    return chosen


def taught_answer(prompt: str, picture: DrawnPicture) -> str:
    """Return the true answer with its locations rounded to the grid that is taught."""
    return re.sub(r"<loc_(\d+)>", _rounded_location, true_answer(prompt, picture))


def _rounded_location(match: re.Match[str]) -> str:
    return f"<loc_{int(match[1]) // _TAUGHT_BIN * _TAUGHT_BIN + _TAUGHT_BIN // 2}>"


def _prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    ids: list[int] = tokenizer.encode(fed_text(find_task(prompt)[0])).ids
    return ids


def _cell_targets(
    pictures: list[DrawnPicture],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    cells = GRID_SIDE**2
    colours = np.full((len(pictures), cells), len(COLOURS), np.int64)
    kinds = np.full((len(pictures), cells), len(KINDS), np.int64)
    boxes = np.full((len(pictures), cells, 4), np.nan, np.float32)
    for index, picture in enumerate(pictures):
        for shape in picture.shapes:
            sides = np.array(picture.image.size * 2, np.float32)
            box = np.array(shape.box_px, np.float32) / sides
            column, row = ((box[:2] + box[2:]) / 2 * GRID_SIDE).astype(int)
            cell = row * GRID_SIDE + column
            colours[index, cell] = list(COLOURS).index(shape.colour)
            kinds[index, cell] = KINDS.index(shape.kind)
            boxes[index, cell] = box
    return colours, kinds, boxes


def padded(rows: list[list[int]], filler: int = PAD) -> NDArray[np.int64]:
    """Return the rows as one array, filled up on the right."""
    array = np.full((len(rows), max(map(len, rows))), filler, np.int64)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array


def labels(questions: list[Question]) -> NDArray[np.int64]:
    return padded([question.answer_ids for question in questions], _IGNORED)
