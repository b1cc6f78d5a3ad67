"""A bar chart as SVG: how many times as fast as transformers, in throughput and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, ROW, LEFT, RIGHT, TOP = 760, 22, 260, 70, 34
COLOURS = {"backfill": "#2f6fab", "alone": "#e08a2e"}


@dataclass(frozen=True)
class Bar:
    """One contender at one size: its name, and its two ratios; None where there is none."""

    name: str
    backfill: float | None
    alone: float | None


def draw_chart(title: str, bars: Sequence[Bar]) -> str:
    """Draw two bars for each contender, and a line at 1, which is transformers."""
    longest = max([1.0, *(value for bar in bars for value in (bar.backfill, bar.alone) if value is not None)])
    scale = (WIDTH - LEFT - RIGHT) / longest
    height = TOP + len(bars) * (2 * ROW + 10) + 34
    parts = [f'<text x="10" y="20" font-weight="bold">{escape(title)}</text>']
    for number, bar in enumerate(bars):
        top = TOP + number * (2 * ROW + 10)
        parts.append(f'<text x="{LEFT - 10}" y="{top + ROW + 5}" text-anchor="end">{escape(bar.name)}</text>')
        parts += _draw_bar(bar.backfill, COLOURS["backfill"], top, scale)
        parts += _draw_bar(bar.alone, COLOURS["alone"], top + ROW, scale)
    bottom = TOP + len(bars) * (2 * ROW + 10)
    one = LEFT + scale
    parts.append(
        f'<line x1="{one:.1f}" y1="{TOP - 4}" x2="{one:.1f}" y2="{bottom}" stroke="#888" stroke-dasharray="4"/>'
    )
    parts += _draw_legend(bottom + 16)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="13">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _draw_bar(value: float | None, colour: str, top: int, scale: float) -> list[str]:
    if value is None:
        return []
    length = value * scale
    return [
        f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{ROW - 4}" fill="{colour}"/>',
        f'<text x="{LEFT + length + 6:.1f}" y="{top + 14}">{value:.2f} ×</text>',
    ]


def _draw_legend(top: int) -> list[str]:
    names = {"backfill": "backfill, pictures a second", "alone": "one picture alone, seconds"}
    parts = []
    for number, (kind, name) in enumerate(names.items()):
        left = LEFT + 230 * number
        parts.append(f'<rect x="{left}" y="{top - 11}" width="12" height="12" fill="{COLOURS[kind]}"/>')
        parts.append(f'<text x="{left + 18}" y="{top}">{name}</text>')
    return parts
