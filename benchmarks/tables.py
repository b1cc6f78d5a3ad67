"""The report's tables: a column is a heading and what it says of a contender."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.results import Plan, Row, SizeResult, usual

NONE = "–"


@dataclass(frozen=True)
class Column:
    """cell: what is seen of the contender with this letter."""

    head: str
    cell: Callable[[SizeResult, str], str]


SPEED = (
    Column("one picture", lambda found, letter: in_seconds(usual(found.rows[letter].alone_s))),
    Column("× (a)", lambda found, letter: in_times(found.faster_alone(letter))),
    Column("backfill, pictures/s", lambda found, letter: in_number(usual(found.rows[letter].per_s), 3)),
    Column("× (a)", lambda found, letter: in_times(found.faster_backfill(letter))),
    Column("caption + tags ÷ caption", lambda found, letter: in_times(found.rows[letter].second_prompt)),
    Column("same as (a)", lambda found, letter: NONE if letter == "a" else _same_as_a(found.rows[letter])),
    Column("backfill as alone", lambda found, letter: _of(found.rows[letter], "grouped_same", "grouped")),
)


def _loaded(row: Row) -> float | None:
    return row.loaded.resident_mb if row.loaded else None


def _peak(row: Row) -> float | None:
    return row.idle.peak_mb if row.idle else None


def _at_rest(row: Row) -> float | None:
    return row.idle.resident_mb if row.idle else None


def _mapped(row: Row) -> float | None:
    return row.idle.mapped_mb if row.idle else None


LIFE = (
    Column("ready", lambda found, letter: in_seconds(usual(found.rows[letter].ready_s))),
    Column("first caption", lambda found, letter: in_seconds(usual(found.rows[letter].first_s))),
    Column("loaded, MiB", lambda found, letter: in_number(_loaded(found.rows[letter]), 0)),
    Column("peak, MiB", lambda found, letter: in_number(_peak(found.rows[letter]), 0)),
    Column("at rest after work, MiB", lambda found, letter: in_number(_at_rest(found.rows[letter]), 0)),
    Column("of that mapped files", lambda found, letter: in_number(_mapped(found.rows[letter]), 0)),
)


def floor_columns(plan: Plan) -> tuple[Column, ...]:
    """What each contender cannot go below, and how far above it is."""

    def step(found: SizeResult, letter: str) -> str:
        precision = found.rows[letter].kind.precision
        step_mb = 1000 * found.work.step_gb(precision, 1)
        return f"{step_mb:.0f} MB, {1000 * found.work.step_s(precision, found.usual_rates, 1):.1f} ms"

    def alone_s(found: SizeResult, letter: str) -> float:
        return found.work.alone_s(found.rows[letter].kind.precision, found.usual_rates)

    def batched_s(found: SizeResult, letter: str) -> float:
        kind = found.rows[letter].kind
        batch = 1 if kind.engine == "reference" else max(1, plan.batch)
        return found.work.batched_s(kind.precision, found.usual_rates, batch)

    def above_alone(found: SizeResult, letter: str) -> str:
        took_s = usual(found.rows[letter].alone_s)
        return in_times(took_s and took_s / alone_s(found, letter))

    def above_batched(found: SizeResult, letter: str) -> str:
        per_s = usual(found.rows[letter].per_s)
        return in_times(per_s and 1 / (per_s * batched_s(found, letter)))

    return (
        Column("a step's floor", step),
        Column("one picture's floor", lambda found, letter: in_seconds(alone_s(found, letter))),
        Column("took", above_alone),
        Column("backfill's floor", lambda found, letter: in_number(1 / batched_s(found, letter), 3)),
        Column("took", above_batched),
        Column("one picture: vision", lambda found, letter: in_seconds(usual(found.rows[letter].vision_s))),
        Column("one picture: text", lambda found, letter: in_seconds(usual(found.rows[letter].text_s))),
    )


def contender_table(found: SizeResult, columns: Sequence[Column]) -> list[str]:
    """A row for each contender; one that could not take part has its row too."""
    rows = []
    for letter, row in found.rows.items():
        cells = [NONE] * len(columns) if row.unable else [column.cell(found, letter) for column in columns]
        rows.append([title(letter, row) + (": could not take part" if row.unable else ""), *cells])
    return table(["", *(column.head for column in columns)], rows)


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Lines of Markdown."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def title(letter: str, row: Row) -> str:
    """A contender's letter and name."""
    return f"({letter}) {row.kind.title}, {row.kind.precision}"


def in_number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def in_times(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f} ×"


def in_seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f} s"


def _same_as_a(row: Row) -> str:
    if not row.checked:
        return NONE
    return f"{_of(row, 'same', 'checked')}; backfill {row.backfilled_same} of {row.backfilled}"


def _of(row: Row, some: str, every: str) -> str:
    """How many of how many; bold where float32 should have had all."""
    count, total = getattr(row, some), getattr(row, every)
    if not total:
        return NONE
    text = f"{count} of {total}"
    return f"**{text}**" if count < total and row.kind.precision == "float32" else text
