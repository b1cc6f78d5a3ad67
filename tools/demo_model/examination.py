"""The examination: pictures that were never trained on, asked through the program's own engine."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from florence_daemon.demo_answers import PROMPTS, true_answer
from florence_daemon.demo_chance import draw_picture, encode_at_random, random_size_px
from florence_daemon.demo_pictures import DrawnPicture
from florence_daemon.engine.backend import Backend, open_backend
from florence_daemon.engine.preprocess import read_picture
from florence_daemon.engine.protocol import Ask, EngineSettings
from florence_daemon.tasks import find_task, parse_answer

_PROCESSES = 2
_SAME_PLACE_IOU = 0.5

Box = list[float]


@dataclass(frozen=True)
class Mark:
    """How one question about one picture went: `right` of `whole` (1 of 1 for a text, boxes of boxes for `<OD>`)."""

    prompt: str
    right: int
    whole: int
    size_px: tuple[int, int]
    answer: str
    truth: str


def held_out_picture(index: int, seed: int) -> tuple[DrawnPicture, bytes]:
    """Draw one of the pictures of the examination, 64 to 4000 pixels a side, and save it as PNG or JPEG."""
    rng = random.Random(f"held out {seed} {index}")
    picture = draw_picture(rng, random_size_px(rng))
    return picture, encode_at_random(rng, picture.image)


def examine(directory: Path, count: int, seed: int) -> Iterator[list[Mark]]:
    """Yield the marks of each picture, all prompts asked with the engine's own defaults."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_PROCESSES, context, initializer=_start, initargs=(directory,)) as pool:
        yield from pool.map(_examine_one, range(count), [seed] * count)


def describe(marks: list[Mark]) -> list[str]:
    """Return a line with the share that is right for each prompt."""
    lines = []
    for prompt in PROMPTS:
        own = [mark for mark in marks if mark.prompt == prompt]
        right, whole = sum(mark.right for mark in own), sum(mark.whole for mark in own)
        what = f"boxes with the right label and IoU >= {_SAME_PLACE_IOU}" if prompt == "<OD>" else "exactly right"
        lines.append(f"{prompt:24} {100 * right / whole:5.1f} % {what} ({right} of {whole})")
    return lines


_backend: Backend  # of the worker process


def _start(directory: Path) -> None:
    global _backend
    torch.set_num_threads(1)
    _backend = open_backend(EngineSettings(model=str(directory), device="cpu", engine="torch", offline=True))


def _examine_one(index: int, seed: int) -> list[Mark]:
    picture, encoded = held_out_picture(index, seed)
    answers, _ = _backend.answer(read_picture(encoded), [Ask(prompt) for prompt in PROMPTS])
    return [_mark(prompt, picture, answer.result) for prompt, answer in zip(PROMPTS, answers, strict=True)]


def _mark(prompt: str, picture: DrawnPicture, answer: str | dict[str, Any]) -> Mark:
    size_px = picture.image.size
    truth = parse_answer(find_task(prompt)[0], true_answer(prompt, picture), size_px)
    if isinstance(answer, str) or isinstance(truth, str):
        right, whole = int(answer == truth), 1
    else:
        right, whole = count_found(answer, truth), max(len(truth["labels"]), len(answer["labels"]))
    return Mark(prompt, right, whole, size_px, str(answer), str(truth))


def count_found(answer: dict[str, Any], truth: dict[str, Any]) -> int:
    """Count the true boxes that the answer has under the same label at the same place, each of its boxes used once."""
    left = list(zip(answer["labels"], answer["bboxes"], strict=True))
    found = 0
    for label, box in zip(truth["labels"], truth["bboxes"], strict=True):
        match = next((it for it in left if it[0] == label and _iou(it[1], box) >= _SAME_PLACE_IOU), None)
        if match is not None:
            left.remove(match)
            found += 1
    return found


def _iou(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (_area(first) + _area(second) - shared) if shared else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
