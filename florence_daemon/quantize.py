"""Try another form of a model, int8 or a smaller picture, beside the usual one: calibrate, ask both, compare."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Protocol

from florence_daemon.config import FolderConfig
from florence_daemon.engine.agreement import MIN_PICTURES, Result, compare, edit_similarity
from florence_daemon.engine.proof import Difference, Form, Report, forget_report, write_report
from florence_daemon.engine.protocol import Answer, Ask, EngineSettings, Stages
from florence_daemon.errors import EngineError, PictureError, UsageError
from florence_daemon.folders.scan import find_images
from florence_daemon.reporting import Progress

INT8 = "int8"
SHOWN_DIFFERENCES = 3
# Their pixels are in memory together, 7 MB each at 768; ranges that a hundred pictures show hardly change with more.
MOST_CALIBRATION = 100
_SEED = 2026

Answers = tuple[list[Answer], Stages]
AnswerFile = Callable[[str, Sequence[Ask]], Answers]


class Listener(Protocol):
    """Is told how it goes on."""

    def begin(self, what: str, total: int) -> Progress:
        """A part begins, over so many images."""

    def step(self, what: str) -> None:
        """A part begins that cannot say how far it is."""

    def skip(self, reason: str) -> None:
        """A picture is left out."""


class Engines(Protocol):
    """What this room needs of the engine: loading, calibrating, and where the int8 form belongs."""

    def image_size(self, settings: EngineSettings) -> int:
        """Side in pixels to which pictures are scaled: the setting's, else the checkpoint's own."""

    def int8_directory(self, settings: EngineSettings) -> Path:
        """The directory of this checkpoint's int8 form at this picture size."""

    def open(self, settings: EngineSettings) -> AbstractContextManager[AnswerFile]:
        """Load a model for as long as the block lasts; it answers asks about a picture's file, with times."""

    def calibrate(self, settings: EngineSettings, pictures: Sequence[str], listener: Listener) -> None:
        """Make the int8 form after how large the network's numbers get on these pictures; leave out unreadable ones.

        Raises:
            EngineError: none of them can be read.
        """


@dataclass(frozen=True)
class Trial:
    """What is tried, and on what.

    usual, other: the two forms. calibration: pictures to calibrate int8 with. measuring: others, to ask both about.
    """

    usual: EngineSettings
    other: EngineSettings
    prompts: tuple[Ask, ...]
    calibration: tuple[str, ...]
    measuring: tuple[str, ...]

    @property
    def is_int8(self) -> bool:
        """Whether an int8 form is made, and its report kept."""
        return self.other.precision == INT8


def choose_pictures(
    folder: Path, count: int, *, halve: bool, on_unreadable: Callable[[OSError], None] = lambda error: None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choose pictures from all over a folder: to calibrate with, none unless `halve`, and to measure with.

    One half is to calibrate with, at most MOST_CALIBRATION; it is not measured with, which would flatter. The same
    folder gives the same pictures.

    Raises:
        UsageError: it is no folder, or too few are there or wanted.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give one with pictures such as those you have captioned")
    needed = 2 * MIN_PICTURES if halve else MIN_PICTURES
    use = ", one half to calibrate with, the other to measure with" if halve else ""
    if count < needed:
        raise UsageError(f"--pictures {count} is too few: at least {needed} are needed{use}")
    found = list(find_images(FolderConfig(path=folder), on_error=on_unreadable))
    if len(found) < needed:
        raise UsageError(f"{folder} has {len(found)} pictures, and at least {needed} are needed{use}")
    sample = spread(found, count)
    calibration = spread(sample, min(len(sample) // 2, MOST_CALIBRATION)) if halve else ()
    return calibration, tuple(path for path in sample if path not in set(calibration))


def spread(paths: Sequence[str], count: int) -> tuple[str, ...]:
    """Take one by chance from each of `count` stretches of the list: every folder, the whole of a series."""
    chance = random.Random(_SEED)  # noqa: S311 - nothing secret
    count = min(count, len(paths))
    borders = [len(paths) * number // count for number in range(count + 1)]
    return tuple(paths[chance.randrange(*stretch)] for stretch in pairwise(borders))


def try_out(trial: Trial, engines: Engines, listener: Listener) -> Report:
    """Ask both forms the same, making the int8 form in between if that is what is tried; keep the report of that.

    One model at a time is in memory. The usual form comes first: what it cannot read is left out from then on.

    Raises:
        EngineError: too many pictures cannot be read.
    """
    usual_size, other_size = engines.image_size(trial.usual), engines.image_size(trial.other)
    usual = _ask(trial.usual, trial.measuring, trial.prompts, engines, listener)
    if len(usual) < MIN_PICTURES:
        raise EngineError(
            f"{len(usual)} of {len(trial.measuring)} pictures to measure with can be read, and {MIN_PICTURES} are "
            "needed: take more with --pictures, or from another folder"
        )
    if trial.is_int8:
        # Whatever was proved before was proved of another int8 form.
        forget_report(engines.int8_directory(trial.other))
        engines.calibrate(trial.other, trial.calibration, listener)
    other = _ask(trial.other, tuple(usual), trial.prompts, engines, listener)
    read = {path: answer for path, answer in usual.items() if path in other}  # one may be gone by now
    report = Report(
        trial.usual.model,
        _form(trial.usual, usual_size, read.values()),
        _form(trial.other, other_size, other.values()),
        tuple(
            compare(_name(ask), *(_results(answers, number) for answers in (read, other)))
            for number, ask in enumerate(trial.prompts)
        ),
        _differences(trial.prompts, read, other),
    )
    if trial.is_int8:
        write_report(report, engines.int8_directory(trial.other))
    return report


@dataclass(frozen=True)
class _Answered:
    """What was answered about one picture, in the order of the asks."""

    results: tuple[Result, ...]
    stages: Stages

    @property
    def picture_s(self) -> float:
        """From the file to the answers."""
        return self.stages.decode_s + self.stages.vision_s + self.stages.text_s


def _ask(
    settings: EngineSettings, pictures: Sequence[str], asks: Sequence[Ask], engines: Engines, listener: Listener
) -> dict[str, _Answered]:
    """Ask about each picture alone, as somebody does who waits for it."""
    form = f"{settings.precision} at {engines.image_size(settings)} pixels"
    answered = {}
    with engines.open(settings) as answer:
        progress = listener.begin(f"asking {form}", len(pictures))
        try:
            for path in pictures:
                try:
                    answers, stages = answer(path, asks)
                except PictureError as error:
                    listener.skip(str(error))
                else:
                    results = tuple(each.result for each in answers)
                    answered[path] = _Answered(results, stages)
                progress.advance(failed=path not in answered)
        finally:
            progress.close()
    return answered


def _form(settings: EngineSettings, image_size: int, answered: Iterable[_Answered]) -> Form:
    every = list(answered)
    return Form(
        settings.precision,
        image_size,
        picture_s=median(each.picture_s for each in every),
        vision_s=median(each.stages.vision_s for each in every),
        text_s=median(each.stages.text_s for each in every),
    )


def _results(answered: dict[str, _Answered], number: int) -> list[Result]:
    """The answers to one ask; the same order of pictures in every dict of answers."""
    return [answered[path].results[number] for path in sorted(answered)]


def _differences(
    asks: Sequence[Ask], usual: dict[str, _Answered], other: dict[str, _Answered]
) -> tuple[Difference, ...]:
    """The texts that differ most of each prompt, the worst of all first."""
    worst: list[tuple[float, Difference]] = []
    for number, ask in enumerate(asks):
        pairs = [(path, usual[path].results[number], other[path].results[number]) for path in sorted(usual)]
        texts = [
            (edit_similarity(one, another), Difference(path, _name(ask), one, another))
            for path, one, another in pairs
            if isinstance(one, str) and isinstance(another, str) and one != another
        ]
        worst += sorted(texts, key=lambda each: each[0])[:1]
    worst.sort(key=lambda each: each[0])
    return tuple(difference for _, difference in worst[:SHOWN_DIFFERENCES])


def _name(ask: Ask) -> str:
    return f"{ask.prompt} {ask.text}" if ask.text else ask.prompt
