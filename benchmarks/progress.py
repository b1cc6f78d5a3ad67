"""Tell a person who waits what is being done and how long it will still take, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping


def say(what: str) -> None:
    """Say something, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


class Progress:
    """What is left for each contender, and the pace that it had last. left: captions, by the contenders' letters."""

    def __init__(self, name: str, left: Mapping[str, int]) -> None:
        self._name = name
        self._left = dict(left)
        self._caption_s: dict[str, float] = {}

    def say(self, what: str) -> None:
        """Say what is done now, and for how long, as soon as every contender's pace is known."""
        known = self._left.keys() <= self._caption_s.keys()
        left_s = sum(count * self._caption_s.get(letter, 0.0) for letter, count in self._left.items())
        say(f"{self._name}: {what}" + (f"; about {left_s / 60:.0f} min left" if known else ""))

    def took(self, letter: str, captions: int, seconds: float) -> None:
        """Take note that a contender has written captions."""
        self._left[letter] = max(0, self._left[letter] - captions)
        self._caption_s[letter] = seconds / captions

    def is_out(self, letter: str) -> None:
        """Take note that a contender does no more."""
        self._left.pop(letter, None)
