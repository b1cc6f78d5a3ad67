"""What a bench found, for a person and for a program: the table, the settings to choose, pictures an hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from florence_daemon.bench import Tried, offers
from florence_daemon.status_text import say_size

# Rounds that differ by more say that something else used the machine meanwhile.
MOST_WAVERING = 0.25
HEAD = ("setting", "pictures/hour", "times", "one alone", "times", "same answers", "memory")


@dataclass(frozen=True)
class BenchReport:
    """Everything that was found. final: what was chosen, measured together once more where it is more than one thing.

    runs_on: `openvino float32 at 768 pixels on cpu`. int8_hint: whether int8 is still to be proved.
    """

    model: str
    runs_on: str
    prompts: tuple[str, ...]
    pictures: int
    rounds: int
    tried: tuple[Tried, ...]
    unable: tuple[tuple[str, str], ...]
    final: Tried
    int8_hint: bool

    def as_json(self) -> dict[str, Any]:
        """The report as it is printed for a program."""
        return {
            "model": self.model,
            "runs_on": self.runs_on,
            "prompts": list(self.prompts),
            "pictures": self.pictures,
            "rounds": self.rounds,
            "tried": [_as_json(each) for each in self.tried],
            "unable": [{"setting": title, "reason": reason} for title, reason in self.unable],
            "choice": _as_json(self.final),
        }


def _as_json(tried: Tried) -> dict[str, Any]:
    return {
        "changes": dict(tried.trial.changes),
        "pictures_per_hour": round(tried.per_hour, 1),
        "ratio": round(tried.ratio, 3),
        "alone_s": round(tried.alone_s, 4),
        "alone_ratio": round(tried.alone_ratio, 3),
        "wavering": round(tried.wavering, 3),
        "resident_mb": None if tried.resident_mb is None else round(tried.resident_mb),
        "agreement": None if tried.agreement is None else asdict(tried.agreement),
    }


def report_lines(report: BenchReport) -> list[str]:
    """The report as a person would want to read it."""
    asked = " and ".join(prompt.strip("<>") for prompt in report.prompts)
    lines = [
        f"{report.model}, {report.runs_on}; {report.pictures} pictures, {asked} of each; rounds: {report.rounds}",
        "",
        *_table([HEAD, *(_row(each) for each in report.tried)]),
    ]
    lines += [f"{title}: not possible here: {reason}" for title, reason in report.unable]
    wavering = max(each.wavering for each in report.tried)
    if wavering > MOST_WAVERING:
        lines.append(f"The rounds differ by up to {100 * wavering:.0f} %: repeat this while nothing else runs.")
    lines += ["", *_advice(report)]
    if report.int8_hint:
        lines += ["", "int8 may be faster on this processor; it is taken once it is proved on your pictures:"]
        lines += ["  florence-daemon quantize --calibrate DIR"]
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(cells)).rstrip()
        for cells in (tuple(zip(row, widths, strict=True)) for row in rows)
    ]


def _row(tried: Tried) -> tuple[str, ...]:
    return (
        tried.trial.title,
        f"{tried.per_hour:,.0f}",
        f"{tried.ratio:.2f}",
        f"{tried.alone_s:.2f} s",
        f"{tried.alone_ratio:.2f}",
        "" if tried.agreement is None else f"{100 * tried.agreement.same:.0f} %",
        "" if tried.resident_mb is None else say_size(tried.resident_mb),
    )


def _advice(report: BenchReport) -> list[str]:
    final = report.final
    pace = f"{_say_count(final.per_hour)} pictures an hour, and {final.alone_s:.2f} s for one alone"
    if final.trial.changes:
        lines = [f"Set this, which says the same {final.ratio:.2f} times as fast: {pace}.", ""]
        lines += snippet(dict(final.trial.changes))
    else:
        lines = [f"Nothing that was tried says the same faster: leave the settings as they are. That is {pace}."]
    others = offers(report.tried)
    if others:
        lines += ["", "Faster, perhaps in other words; look at some before you set it:", "", "model:"]
        lines += [f"  {_line(each)}" for each in others]
    return lines


def snippet(changes: dict[str, Any]) -> list[str]:
    """What to paste into a configuration. The values are numbers and plain words, which YAML takes as they are."""
    return ["model:", *(f"  {name}: {value}" for name, value in changes.items())]


def _line(tried: Tried) -> str:
    """`num_beams: 1  # 1.80 times as fast, 1,200 an hour; 42 % of the answers stay`"""
    same = 100 * tried.agreement.same if tried.agreement is not None else 100
    about = f"{tried.ratio:.2f} times as fast, {_say_count(tried.per_hour)} an hour; {same:.0f} % of the answers stay"
    return f"{tried.trial.title}  # {about}"


def _say_count(number: float) -> str:
    """Two digits are what a measurement of minutes can tell."""
    return f"{float(f'{number:.2g}'):,.0f}" if number < 1000 else f"{float(f'{number:.3g}'):,.0f}"
