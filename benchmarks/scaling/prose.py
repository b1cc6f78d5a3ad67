"""The words of docs/scale.md, from prose.md; figures come into them by name."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("prose.md")


@cache
def _sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)\n", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def say(name: str, **figures: str) -> list[str]:
    """The lines of one of the sections."""
    return _sections()[name].format(**figures).splitlines()
