"""How long a backfill would take: a sample drawn while counting, and what it measured, spread over all that is due."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, stdev
from typing import Any, Generic, TypeVar

from florence_daemon.engine.protocol import Stages

Item = TypeVar("Item")

SAMPLE = 32
# Of 20 samples, 19 would say a range that holds the truth, as far as pictures alone differ.
CONFIDENCE = 0.95
# A range is never narrower: the same pictures on the same machine take a little more or less each time.
LEAST_SPREAD = 0.1


class Reservoir(Generic[Item]):
    """So many items of a stream of any length, each as likely as every other; the same ones for the same seed."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size = size
        self._random = random.Random(seed)  # noqa: S311 nothing secret
        self._kept: list[Item] = []
        self.offered = 0

    def offer(self, item: Item) -> None:
        """Keep it in the place of another, or let it go."""
        self.offered += 1
        if len(self._kept) < self._size:
            self._kept.append(item)
        elif (place := self._random.randrange(self.offered)) < self._size:
            self._kept[place] = item

    def draw(self) -> list[Item]:
        """What was kept, in an order by chance."""
        return self._random.sample(self._kept, len(self._kept))


@dataclass(frozen=True)
class Count:
    """What was found. pictures: all of them. due: those that would be captioned. refused: those that cannot be."""

    pictures: int
    due: int
    refused: int


@dataclass(frozen=True)
class Measured:
    """What a sample took. load_s: the model's; seconds: what it all took after that, so many passes of it.

    stages: of each picture that has its captions, in its first pass. failures: of the others, path and reason.
    engines: how many worked side by side. cores: of this machine's processors, those that may decode. fetch_s: what a
    picture took on its way here, several at a time; 0 for those that are here. device: of the engines, or the servers'
    addresses; see `kind`.
    """

    model: str
    device: str
    engines: int
    cores: int
    load_s: float
    seconds: float
    passes: int
    stages: tuple[Stages, ...]
    failures: Mapping[str, str] = field(default_factory=dict)
    fetch_s: float = 0.0

    @property
    def kind(self) -> str:
        """What more of would be faster: `GPU`, `server`, or `machine` where the model has but a processor."""
        if self.device.startswith("http"):
            return "server"
        return "GPU" if self.device.startswith("cuda") else "machine"

    @property
    def pictures(self) -> int:
        """How many were tried."""
        return len(self.stages) + len(self.failures)

    @property
    def per_s(self) -> float:
        """Pictures a second, with all engines that worked."""
        return self.passes * self.pictures / max(self.seconds, 1e-9)

    @property
    def mean(self) -> Stages:
        """Seconds that a picture takes of each part; what several share is divided among them."""
        if not self.stages:
            return Stages()
        return Stages(
            fmean(each.decode_s for each in self.stages),
            fmean(each.vision_s for each in self.stages),
            fmean(each.text_s for each in self.stages),
        )

    @property
    def decodes_per_s(self) -> float | None:
        """How many pictures a second all of this machine's cores decode, with nothing else to do."""
        return self.cores / self.mean.decode_s if self.mean.decode_s else None

    def spread(self, due: int) -> float:
        """By what part the mean of all that is due may differ from the sample's, by chance: 0.2 for a fifth."""
        taken = [each.decode_s + each.vision_s + each.text_s for each in self.stages]
        count = len(taken)
        if count < 2 or not fmean(taken):
            return LEAST_SPREAD
        left_out = math.sqrt(max(0.0, 1 - self.pictures / due))
        error = stdev(taken) / fmean(taken) / math.sqrt(count)
        return max(LEAST_SPREAD, _quantile(count - 1) * error * left_out)


def _quantile(freedom: int) -> float:
    """Student's t for `CONFIDENCE` on both sides, by the first term of its expansion: within 1 % from ten on."""
    normal = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return normal + (normal**3 + normal) / (4 * freedom)


@dataclass(frozen=True)
class Span:
    """How long it would take, in seconds, and between what and what that is likely to be."""

    likely_s: float
    least_s: float
    most_s: float

    def as_json(self) -> dict[str, float]:
        """To the millisecond, which only a few small pictures need."""
        return {name: round(value, 3) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Estimate:
    """What a backfill would take. measured: None when nothing is due."""

    count: Count
    measured: Measured | None

    def span(self, engines: int | None = None) -> Span | None:
        """How long it takes here, or with so many engines as the ones here; None where nothing could be measured."""
        measured = self.measured
        if measured is None or not measured.stages:
            return None
        faster = 1.0 if engines is None else engines / measured.engines
        work_s = self.count.due / (measured.per_s * faster)
        spread = 1 + measured.spread(self.count.due)
        return Span(*(measured.load_s + each for each in (work_s, work_s / spread, work_s * spread)))

    def decoding_span_s(self) -> float | None:
        """How long this machine's cores would take to decode everything: no number of GPUs beside them is faster."""
        pace = self.measured.decodes_per_s if self.measured is not None else None
        return self.count.due / pace if pace else None

    @property
    def failing(self) -> int:
        """How many of what is due would fail, as many as in the sample."""
        measured = self.measured
        return round(self.count.due * len(measured.failures) / measured.pictures) if measured is not None else 0

    def as_json(self, gpus: int | None) -> dict[str, Any]:
        """The estimate as it is printed for a program."""
        here, there = self.span(), self.span(gpus) if gpus is not None else None
        return {
            "model": self.measured.model if self.measured is not None else None,
            **vars(self.count),
            "sample": _sample_json(self.measured) if self.measured is not None else None,
            "expected_failures": self.failing,
            "here": here.as_json() if here is not None else None,
            "gpus": {"count": gpus, **there.as_json()} if there is not None else None,
        }


def _sample_json(measured: Measured) -> dict[str, Any]:
    pace = measured.decodes_per_s
    return {
        "pictures": measured.pictures,
        "failures": [{"path": path, "reason": reason} for path, reason in measured.failures.items()],
        "device": measured.device,
        "engines": measured.engines,
        "load_s": round(measured.load_s, 2),
        "seconds": round(measured.seconds, 3),
        "passes": measured.passes,
        "pictures_per_s": round(measured.per_s, 3),
        "picture": {name: round(value, 4) for name, value in vars(measured.mean).items()},
        "fetch_s": round(measured.fetch_s, 4),
        "decodes_per_s": round(pace, 1) if pace is not None else None,
    }
