"""Read `keep_alive`, Ollama's word for how long the model stays without work after a request."""

from __future__ import annotations

import re
from typing import Any

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# Seconds beyond which a number is a mistake: 30 years.
MOST_S = 1_000_000_000
_LENGTH = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
DURATION = rf"^\s*-?(?:{_LENGTH}|(?:{_LENGTH}(?:ms|s|m|h)){{1,4}})\s*$"


def read_keep_alive(value: Any) -> float:
    """Read seconds, 300, or a duration, "5m" or "1h30m", as seconds; negative means for ever, 0 unloads at once.

    Raises: ValueError, which says what is expected.
    """
    if type(value) in (int, float) and abs(value) <= MOST_S:
        return float(value)
    if isinstance(value, str) and re.match(DURATION, value, re.ASCII):
        parts = re.findall(r"([0-9.]+)([a-z]*)", value)
        seconds = sum(float(number) * UNITS_S[unit or "s"] for number, unit in parts)
        return -seconds if value.strip().startswith("-") else seconds
    raise ValueError(
        f'keep_alive: {value!r:.80} is no duration; give seconds, or one such as "5m"; 0 unloads at once, -1 never'
    )
