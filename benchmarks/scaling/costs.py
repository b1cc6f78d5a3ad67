"""What a million pictures cost: derived from docs/benchmarks.md, which measured the models, and from the rows here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scaling.findings import DOCS

BENCHMARKS = DOCS / "benchmarks.md"
MILLION = 1_000_000
HOUR_S = 3600
# What a network of 1 Gbit/s carries, at most.
GIGABIT_BYTES = 125_000_000


@dataclass(frozen=True)
class Model:
    """A size of the model in one way of running it, as docs/benchmarks.md measured it.

    per_s: pictures a second of a backfill on the whole machine. vision_s, text_s: of one picture alone.
    """

    size: str
    way: str
    per_s: float
    vision_s: float
    text_s: float

    @property
    def title(self) -> str:
        """`Base, OpenVINO, int8`"""
        return f"{self.size}, {self.way}"

    @property
    def hours(self) -> float:
        """Hours of one such machine for a million pictures."""
        return MILLION / self.per_s / HOUR_S


def measured_models(page: Path = BENCHMARKS) -> list[Model]:
    """Our ways of running base and large, in the order of the page. Raises: ValueError when it says them otherwise."""
    found = []
    for section in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        size = section.partition("\n")[0].strip()
        rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| (")]
        for way, backfill, parts in _by_way(rows):
            found.append(Model(size, way, float(backfill[3]), _seconds(parts[6]), _seconds(parts[7])))
    if not found:
        raise ValueError(f"{page}: there are no rows of contenders in it")
    return found


def _by_way(rows: list[list[str]]) -> list[tuple[str, list[str], list[str]]]:
    """Each of ours with its row of the first table (8 cells, in pictures/s) and of the last (8 cells, the floors)."""
    found = []
    for title in dict.fromkeys(row[0] for row in rows if "ours" in row[0]):
        own = [row for row in rows if row[0] == title and len(row) == 8]
        found.append((title.partition("ours, ")[2], own[0], own[-1]))
    return found


def _seconds(cell: str) -> float:
    return float(cell.removesuffix(" s"))


def machine_of(page: Path = BENCHMARKS) -> str:
    """The first line of what the page says of its machine."""
    machine = page.read_text(encoding="utf-8").partition("## Machine")[2]
    return machine.strip().splitlines()[0].removeprefix("- ").partition(":")[0]
