"""What each row found, kept in docs/scale.json, so that each can be measured at its own time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
KEPT = DOCS / "scale.json"


@dataclass(frozen=True)
class Found:
    """What a row found, in figures; or why it could not be measured. took_s: all of it."""

    date: str
    machine: str
    took_s: float
    figures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def find(run: Callable[[], dict[str, Any]]) -> Found:
    """Run a row; what keeps it from its figures is what it found, and the others go on."""
    began_s = time.monotonic()
    figures: dict[str, Any] = {}
    error = None
    try:
        figures = run()
    except (Exception, SystemExit) as caught:
        error = f"{type(caught).__name__}: {caught}"
    processor, memory, system = describe_machine("cpu")[:3]
    words = f"{processor.split(':')[0]}, {memory}, {system}"
    return Found(time.strftime("%Y-%m-%d"), words, round(time.monotonic() - began_s, 1), figures, error)


def load(file: Path = KEPT) -> dict[str, Found]:
    """Everything that was found so far, by the name of the row."""
    if not file.exists():
        return {}
    return {name: Found(**found) for name, found in json.loads(file.read_text(encoding="utf-8")).items()}


def keep(found: Mapping[str, Found], file: Path = KEPT) -> None:
    """Add these to what was found before."""
    together = load(file) | dict(found)
    lines = [
        f"{json.dumps(name)}: {json.dumps(asdict(each), ensure_ascii=False)}" for name, each in sorted(together.items())
    ]
    unfinished = file.with_suffix(".part")
    unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    os.replace(unfinished, file)
