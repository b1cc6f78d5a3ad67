"""Try settings on the user's own machine and pictures: how fast each is, and whether it says the same.

Each trial differs from the settings as they are in one thing. Every round starts each trial's engine process anew, in
turn, so that what slows the machine down for a while slows all of them; ratios are taken within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Protocol

from florence_daemon.engine.agreement import (
    MIN_BOX_IOU,
    MIN_EDIT_SIMILARITY,
    MIN_TAG_OVERLAP,
    Agreement,
    Result,
    compare,
    summarize,
)
from florence_daemon.engine.protocol import Ask, Done, EngineSettings
from florence_daemon.errors import EngineCrashed, EngineError, FlorenceError, PictureError
from florence_daemon.reporting import Progress

KINDS = ("engine", "precision", "num_beams", "max_batch", "image_size")
# Pictures that a new engine process answers before its time counts: memory is taken, kernels are chosen.
WARM_UP = 2
# What gains less is not worth a line in a configuration, and may be chance.
MIN_GAIN = 1.1


@dataclass(frozen=True)
class Facts:
    """What the settings come to on this machine. side_px: the picture's; int8_proved: quantize has shown it to be good.

    device: `cpu`, `cuda:0`; engine, precision: as `model.engine` and `model.precision` name them, never auto.
    """

    device: str
    engine: str
    precision: str
    side_px: int
    has_openvino: bool
    int8_proved: bool


@dataclass(frozen=True)
class Trial:
    """Settings to try. changes: what would be written below `model:`, empty for the settings as they are.

    keeps_words: these settings are meant to change no answer.
    """

    changes: tuple[tuple[str, Any], ...]
    settings: EngineSettings
    keeps_words: bool

    @property
    def title(self) -> str:
        """`num_beams: 1`"""
        return ", ".join(f"{name}: {value}" for name, value in self.changes) or "as configured"


@dataclass(frozen=True)
class Plan:
    """How much is measured. alone: how many of the pictures are asked about one by one, too."""

    rounds: int
    alone: int


@dataclass
class Row:
    """What was measured of a trial, round by round. alone_s: for a picture alone; per_hour: pictures, many at once.

    unable: why it cannot be tried here. resident_mb: the engine process' main memory, where the system tells it.
    """

    trial: Trial
    alone_s: list[float] = field(default_factory=list)
    per_hour: list[float] = field(default_factory=list)
    answers: dict[str, tuple[Result, ...]] = field(default_factory=dict)
    resident_mb: float | None = None
    unable: str | None = None


@dataclass(frozen=True)
class Tried:
    """A row summed up: medians, and medians of the ratios to the settings as they are, above 1 for faster.

    agreement: how far the answers are those of the settings as they are; None for these themselves. wavering: by what
    share the fastest round is faster than the slowest.
    """

    trial: Trial
    alone_s: float
    per_hour: float
    alone_ratio: float
    ratio: float
    resident_mb: float | None
    agreement: Agreement | None
    wavering: float = 0.0

    @property
    def is_near(self) -> bool:
        """Whether its answers are near enough to take it for the settings as they are."""
        found = self.agreement
        if found is None:
            return True
        limits = (
            (found.edit_similarity, MIN_EDIT_SIMILARITY),
            (found.tag_overlap, MIN_TAG_OVERLAP),
            (found.box_iou, MIN_BOX_IOU),
        )
        return all(figure is None or figure >= needed for figure, needed in limits)


class RunningEngine(Protocol):
    """What this room needs of an engine process."""

    def submit(self, picture: str | bytes, asks: tuple[Ask, ...]) -> Future[Done]:
        """Send a request."""

    def resident_mb(self) -> float | None:
        """Its process' main memory."""


OpenEngine = Callable[[EngineSettings], AbstractContextManager[RunningEngine]]


class Listener(Protocol):
    """Is told how it goes on."""

    def begin(self, what: str, total: int) -> Progress:
        """A part begins, over so many images."""

    def skip(self, reason: str) -> None:
        """Something is left out."""


def make_trials(present: EngineSettings, facts: Facts, kinds: Sequence[str] = KINDS) -> list[Trial]:
    """The settings as they are, and each change that is possible here; kinds: which settings to change."""
    makers: dict[str, Callable[[EngineSettings, Facts], Iterator[dict[str, Any]]]] = {
        "engine": _other_engines,
        "precision": _other_precisions,
        "num_beams": _other_beams,
        "max_batch": _other_batches,
        "image_size": _other_sizes,
    }
    trials = [Trial((), present, True)]
    for kind in kinds:
        for changes in makers[kind](present, facts):
            keeps_words = kind in ("engine", "precision", "max_batch")
            trials.append(Trial(tuple(changes.items()), replace(present, **changes), keeps_words))
    return trials


def _other_engines(present: EngineSettings, facts: Facts) -> Iterator[dict[str, Any]]:
    if facts.device != "cpu":
        return
    if facts.engine != "torch":
        yield {"engine": "torch"} | ({"precision": "float32"} if present.precision == "int8" else {})
    elif facts.has_openvino and facts.precision == "float32":
        yield {"engine": "openvino"}


def _other_precisions(present: EngineSettings, facts: Facts) -> Iterator[dict[str, Any]]:
    if facts.device != "cpu" or not facts.has_openvino:
        return
    if facts.precision == "int8":
        yield {"precision": "float32"}
    elif facts.int8_proved:
        yield {"precision": "int8"} | ({} if present.engine in ("auto", "openvino") else {"engine": "openvino"})


def _other_beams(present: EngineSettings, facts: Facts) -> Iterator[dict[str, Any]]:
    yield {"num_beams": 1 if present.num_beams > 1 else 3}


def _other_batches(present: EngineSettings, facts: Facts) -> Iterator[dict[str, Any]]:
    for batch in (4, 16) if facts.device == "cpu" else (16, 64):
        if batch != present.max_batch:
            yield {"max_batch": batch}


def _other_sizes(present: EngineSettings, facts: Facts) -> Iterator[dict[str, Any]]:
    """Three quarters and half of the side, as the configuration takes them: 576 and 384 of 768."""
    sizes = {facts.side_px * part // 4 // 32 * 32 for part in (2, 3)}
    for size in sorted(sizes - {0, facts.side_px}, reverse=True):
        yield {"image_size": size}


class Bench:
    """Measures trials; the first one is the settings as they are. What cannot be read is left out from then on."""

    def __init__(
        self,
        pictures: Sequence[str],
        asks: Sequence[Ask],
        plan: Plan,
        open_engine: OpenEngine,
        listener: Listener,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._pictures = list(pictures)
        self._asks = tuple(asks)
        self._plan = plan
        self._open = open_engine
        self._listener = listener
        self._clock = clock

    def run(self, trials: Sequence[Trial]) -> list[Row]:
        """Measure every trial in every round; the next round begins with another.

        Raises: FlorenceError when the settings as they are do not work, or no picture can be read.
        """
        rows = [Row(trial) for trial in trials]
        self._look_over(rows[0].trial)
        progress = self._listener.begin(f"trying {len(rows)} settings", self._total(len(rows)))
        try:
            for number in range(self._plan.rounds):
                first = number % len(rows)
                for row in rows[first:] + rows[:first]:
                    self._measure(row, progress, may_fail=row is not rows[0])
        finally:
            progress.close()
        return rows

    def _total(self, trials: int) -> int:
        count = len(self._pictures)
        each = min(WARM_UP, count) + min(self._plan.alone, count) + count
        return self._plan.rounds * trials * each

    def _look_over(self, trial: Trial) -> None:
        """Ask about each picture once, and leave out those that have no answer."""
        progress = self._listener.begin("loading the model, and asking about each picture once", len(self._pictures))
        try:
            with self._open(trial.settings) as engine:
                self._together(engine, self._pictures, progress)
        finally:
            progress.close()

    def _measure(self, row: Row, progress: Progress, *, may_fail: bool) -> None:
        if row.unable is not None:
            return
        try:
            with self._open(row.trial.settings) as engine:
                self._together(engine, self._pictures[:WARM_UP], progress)
                row.alone_s.append(median(self._alone(engine, progress)))
                began_s = self._clock()
                row.answers = self._together(engine, self._pictures, progress)
                row.per_hour.append(3600 * len(row.answers) / max(self._clock() - began_s, 1e-9))
                row.resident_mb = engine.resident_mb()
        except FlorenceError as error:
            if not may_fail:
                raise
            row.unable = str(error)
            self._listener.skip(f"{row.trial.title}: {error}")

    def _alone(self, engine: RunningEngine, progress: Progress) -> Iterator[float]:
        """Seconds for each picture, asked about while nothing else is."""
        for path in self._pictures[: self._plan.alone]:
            began_s = self._clock()
            engine.submit(path, self._asks).result()
            yield self._clock() - began_s
            progress.advance(failed=False)

    def _together(
        self, engine: RunningEngine, pictures: Sequence[str], progress: Progress
    ) -> dict[str, tuple[Result, ...]]:
        """Ask about all at once, and wait for the last; results by picture, in the order of the asks."""
        futures = {path: engine.submit(path, self._asks) for path in pictures}
        answered = {}
        for path, future in futures.items():
            try:
                answered[path] = tuple(answer.result for answer in future.result().answers)
            except (PictureError, EngineCrashed) as error:
                self._pictures.remove(path)
                self._listener.skip(str(error))
            progress.advance(failed=path not in answered)
        if not self._pictures:
            raise EngineError("none of the pictures can be read; give others")
        return answered


def sum_up(rows: Sequence[Row], asks: Sequence[Ask]) -> list[Tried]:
    """The rows that could be measured, the settings as they are first."""
    present = rows[0]
    return [
        Tried(
            row.trial,
            alone_s=median(row.alone_s),
            per_hour=median(row.per_hour),
            alone_ratio=_ratio(present.alone_s, row.alone_s),
            ratio=_ratio(row.per_hour, present.per_hour),
            resident_mb=row.resident_mb,
            agreement=None if row is present else _agreement(present, row, asks),
            wavering=max(row.per_hour) / max(min(row.per_hour), 1e-9) - 1,
        )
        for row in rows
        if row.unable is None
    ]


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return median(one / max(other, 1e-9) for one, other in zip(above, below, strict=True))


def _agreement(present: Row, row: Row, asks: Sequence[Ask]) -> Agreement:
    both = sorted(set(present.answers) & set(row.answers))
    return summarize(
        [
            compare(ask.prompt, *([each.answers[path][number] for path in both] for each in (present, row)))
            for number, ask in enumerate(asks)
        ]
    )


def choose(tried: Sequence[Tried]) -> list[Tried]:
    """What is worth setting: the fastest that keeps the words, of each setting that goes with the others."""
    best: dict[bool, Tried] = {}
    for each in tried[1:]:
        is_batch = any(name == "max_batch" for name, _ in each.trial.changes)
        if each.trial.keeps_words and each.is_near and each.ratio >= max(MIN_GAIN, _gain(best.get(is_batch))):
            best[is_batch] = each
    return list(best.values())


def _gain(tried: Tried | None) -> float:
    return 0.0 if tried is None else tried.ratio


def offers(tried: Sequence[Tried]) -> list[Tried]:
    """What is faster in other words, the fastest first: a person has to look at the words."""
    found = [each for each in tried[1:] if not each.trial.keeps_words and each.ratio >= MIN_GAIN]
    return sorted(found, key=lambda each: -each.ratio)


def join(present: EngineSettings, chosen: Sequence[Tried]) -> Trial:
    """All that was chosen as one trial: what two settings gain together nobody knows before it is measured."""
    changes = dict(change for each in chosen for change in each.trial.changes)
    return Trial(tuple(changes.items()), replace(present, **changes), True)
