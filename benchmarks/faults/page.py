"""docs/reliability.md: the promises, and each failure with what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.faults.findings import ROOT, Finding
from benchmarks.faults.rows import ROWS, TABLES, Row

PAGE = ROOT / "docs" / "reliability.md"
NOTES = Path(__file__).with_name("promises.md")


def write_page(found: Mapping[str, Finding]) -> None:
    """Write the page from what was found."""
    PAGE.write_text("\n".join(render(found)) + "\n", encoding="utf-8")


def render(found: Mapping[str, Finding]) -> list[str]:
    """The page's lines."""
    lines = NOTES.read_text(encoding="utf-8").splitlines()
    for title, rows in TABLES.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| | what goes wrong | what the program does | measured |",
            "|---|---|---|---|",
        ]
        lines += [f"| {row.number} | {row.failure} | {row.remedy} | {_measured(row, found)} |" for row in rows]
    return [*lines, "", *_not_shown(found), *_where(found)]


def tests_of(row: Row, found: Mapping[str, Finding]) -> dict[str, Finding]:
    """What the row's tests found."""
    return {name: each for name, each in found.items() if any(name.startswith(test) for test in row.tests)}


def _measured(row: Row, found: Mapping[str, Finding]) -> str:
    long = [f"**{each.figure}**{_failed(each)}" for name in row.long if (each := found.get(name))]
    tests = tests_of(row, found)
    figures = list(dict.fromkeys(each.figure for each in tests.values() if each.outcome == "held" and each.figure))
    failed = [f"{name.partition('::')[2]} failed" for name, each in tests.items() if each.outcome == "failed"]
    held = sum(each.outcome == "held" for each in tests.values())
    count = [f"{held} of {len(tests)} tests hold" if tests else "not measured yet"]
    files = dict.fromkeys(test.partition("::")[0] for test in row.tests)
    links = ", ".join(f"[{Path(file).name}](../{file})" for file in files)
    return _escape(" · ".join([*long, *figures, *failed, *count])) + f" ({links})"


def _failed(finding: Finding) -> str:
    return "" if finding.outcome == "held" else " (this did not hold)"


def _not_shown(found: Mapping[str, Finding]) -> list[str]:
    gaps = [f"- {row.number}: {row.gap}" for row in ROWS if row.gap]
    skipped = [
        f"- {row.number}: `{name.partition('::')[2]}` was skipped: {each.figure}"
        for row in ROWS
        for name, each in tests_of(row, found).items()
        if each.outcome == "skipped"
    ]
    lines = sorted({*gaps, *skipped})
    return ["## Not shown", "", *(lines or ["Nothing: every row was measured."]), ""]


def _where(found: Mapping[str, Finding]) -> list[str]:
    machines: dict[str, set[str]] = {}
    for each in found.values():
        machines.setdefault(each.machine, set()).add(each.date)
    lines = [f"- {machine}: {', '.join(sorted(dates))}" for machine, dates in sorted(machines.items())]
    return ["## Where it was measured", "", *lines]


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
