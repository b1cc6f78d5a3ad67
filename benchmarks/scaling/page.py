"""docs/scale.md: what a million pictures cost, where the time goes, what bounds it, and every row that was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.scaling import sections
from benchmarks.scaling.costs import BENCHMARKS, machine_of, measured_models
from benchmarks.scaling.findings import DOCS, Found
from benchmarks.scaling.prose import say

PAGE = DOCS / "scale.md"

Section = Callable[[Mapping[str, Any]], Sequence[str]]
# Every row: its heading, and what is said of its figures.
SECTIONS: dict[str, tuple[str, Section]] = {
    "engines": ("Several engines in one machine", sections.engines),
    "ceiling": ("What one backfill can feed", sections.ceiling),
    "decoding": ("Decoding", sections.decoding),
    "servers": ("Through other machines' servers", sections.servers),
    "ray": ("On a Ray cluster", sections.ray),
    "faults": ("Killed midway", sections.faults),
    "estimate": ("An estimate and what came of it", sections.estimate),
}


def write_page(found: Mapping[str, Found]) -> None:
    """Write the page from what was found."""
    PAGE.write_text("\n".join(render(found)) + "\n", encoding="utf-8")


def render(found: Mapping[str, Found]) -> list[str]:
    """The page's lines."""
    figures = {name: each.figures for name, each in found.items() if each.error is None}
    models = measured_models(BENCHMARKS)
    lines = say("introduction")
    lines += ["", "## A million pictures", "", *sections.costs(models, machine_of())]
    lines += ["", "## Where the time goes, and what bounds it", "", *sections.bounds(models, figures)]
    for name, (title, section) in SECTIONS.items():
        lines += ["", f"## {title}", "", *_measured(name, section, found.get(name))]
    return [*lines, "", *_where(found)]


def _measured(name: str, section: Section, found: Found | None) -> Sequence[str]:
    again = f"`python -m benchmarks.scale --write --only {name}`"
    if found is None:
        return [f"Not measured yet: {again} does so."]
    if found.error is not None:
        reason = found.error.splitlines()[0]
        return [f"**Could not be measured** on {found.date}: {reason}. {again} tries again."]
    return section(found.figures)


def _where(found: Mapping[str, Found]) -> list[str]:
    machines: dict[str, set[str]] = {}
    for each in found.values():
        machines.setdefault(each.machine, set()).add(each.date)
    lines = [f"- {machine}: {', '.join(sorted(dates))}" for machine, dates in sorted(machines.items())]
    return ["## Where it was measured", "", *lines]
