"""Runs a decoder and its searches for tests; questions join when they are told to and leave when they are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from florence_daemon.engine.decoder import Decoder
from florence_daemon.engine.search import Search, SearchSettings


@dataclass
class Asked:
    """A question. joins_at: the step before which it joins."""

    features: Any
    prompt: Sequence[int]
    settings: SearchSettings
    joins_at: int = 0


def decode(decoder: Decoder, asked: Sequence[Asked]) -> list[list[int]]:
    """Answer all questions with one decoder; ids with the start token first."""
    waiting = sorted(range(len(asked)), key=lambda number: asked[number].joins_at)
    searches = [Search(each.settings) for each in asked]
    inside: list[int] = []
    parents: dict[int, list[int]] = {}
    step = 0
    while waiting or inside:
        while waiting and asked[waiting[0]].joins_at <= step:
            number = waiting.pop(0)
            decoder.join(asked[number].features, asked[number].prompt, asked[number].settings.num_beams)
            parents[number] = list(range(asked[number].settings.num_beams))
            inside.append(number)
        step += 1
        if not inside:
            continue
        ids = [token for number in inside for token in searches[number].last_ids]
        offers = decoder.step([parent for number in inside for parent in parents[number]], ids)
        start = 0
        for number in inside:
            stop = start + asked[number].settings.num_beams
            parents[number] = searches[number].advance(offers, range(start, stop))
            start = stop
        decoder.leave([place for place, number in enumerate(inside) if searches[number].is_done])
        inside = [number for number in inside if not searches[number].is_done]
    return [search.answer for search in searches]
