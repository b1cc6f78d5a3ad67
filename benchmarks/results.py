"""What a run of the engine's benchmark found: frozen, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.contender import Memory
from benchmarks.floor import Rates, Work


@dataclass(frozen=True)
class Kind:
    """A way of running Florence-2. engine: as `contender.Order` has it."""

    title: str
    engine: str
    precision: str


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    pictures: of a backfill; reference_pictures: how many of them transformers does, whose pace depends on no batch.
    alone: pictures in a row whose mean is a round's latency. batch: questions side by side, in a backfill of ours.
    """

    device: str = "cpu"
    rounds: int = 3
    pictures: int = 32
    reference_pictures: int = 32
    alone: int = 2
    new_tokens: int = 64
    batch: int = 8


@dataclass
class Row:
    """What was measured of a contender: an entry a round, in the rounds' order.

    unable: why it could not take part. ready_s, first_s: from the start of its process to the model, to the first
    caption. alone_s: a caption of one picture; both_s: caption and tags of one picture. per_s: pictures a second.
    checked, same: answers that were compared with the reference's, and those that were equal; backfilled: those of a
    backfill. grouped: a backfill's answers that were compared with the same contender's own about one picture alone.
    short: answers that are not of full length.
    """

    kind: Kind
    unable: str | None = None
    ready_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    alone_s: list[float] = field(default_factory=list)
    vision_s: list[float] = field(default_factory=list)
    text_s: list[float] = field(default_factory=list)
    both_s: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    loaded: Memory | None = None
    idle: Memory | None = None
    checked: int = 0
    same: int = 0
    backfilled: int = 0
    backfilled_same: int = 0
    grouped: int = 0
    grouped_same: int = 0
    short: int = 0

    @property
    def second_prompt(self) -> float | None:
        """How much longer caption and tags take than the caption, in the median round."""
        return ratio(self.both_s, self.alone_s)


@dataclass(frozen=True)
class SizeResult:
    """A size of the model: the contenders by their letters, what the machine did meanwhile, what the work is."""

    size: str
    work: Work
    rates: list[Rates]
    rows: dict[str, Row]

    @property
    def usual_rates(self) -> Rates:
        """The median of the rounds."""
        return Rates(
            median(each.matrix_gflop_s for each in self.rates), median(each.memory_gb_s for each in self.rates)
        )

    def faster_alone(self, letter: str) -> float | None:
        """How many times as fast as (a) a contender answers about one picture."""
        return ratio(self._of("a").alone_s, self._of(letter).alone_s)

    def faster_backfill(self, letter: str) -> float | None:
        """How many times as many pictures as (a) a contender does in the same time."""
        return ratio(self._of(letter).per_s, self._of("a").per_s)

    def _of(self, letter: str) -> Row:
        return self.rows.get(letter, Row(Kind("", "", "")))


@dataclass(frozen=True)
class Result:
    """A whole run. machine, versions: what to print of them."""

    plan: Plan
    machine: list[str]
    versions: dict[str, str]
    sizes: list[SizeResult]


def ratio(above: Sequence[float], below: Sequence[float]) -> float | None:
    """The median of the ratios within each round; None where nothing was measured."""
    if not above or not below:
        return None
    return median(one / other for one, other in zip(above, below, strict=True))


def usual(values: Sequence[float]) -> float | None:
    """The median; None where nothing was measured."""
    return median(values) if values else None
