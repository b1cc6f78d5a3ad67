"""What a sidecar is to hold: a function of the answers, and of the bytes that are there."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from florence_daemon.config_output import ADDS, OutputConfig
from florence_daemon.engine.protocol import Ask
from florence_daemon.errors import PoorAnswer, UnfitSidecar
from florence_daemon.folders.shaping import (
    TAGS,
    captions_and_tags,
    key_of_tag,
    separator,
    separators,
    shape,
    split_tags,
)
from florence_daemon.folders.structured import render_json
from florence_daemon.folders.xmp import Words
from florence_daemon.folders.xmp_packet import MAX_BYTES
from florence_daemon.folders.xmp_sidecar import merged

# A caption that is added to is read whole; nobody writes one of a megabyte.
MOST_BYTES = 2**20
BOM = "\ufeff"


@dataclass(frozen=True)
class Said:
    """What was said of a picture for one output: a result to each ask. size_px: the upright picture's. model: whose."""

    image_name: str
    size_px: tuple[int, int]
    asks: tuple[Ask, ...]
    results: tuple[str | dict[str, Any], ...]
    model: str = ""


def reads_existing(output: OutputConfig, rule: str) -> bool:
    """Tell whether what a sidecar is to hold depends on what it holds. rule: see `OutputConfig.rule`."""
    return rule in ADDS or output.is_xmp


def most_bytes(output: OutputConfig) -> int:
    """How large a sidecar may be that is read."""
    return MAX_BYTES if output.is_xmp else MOST_BYTES


def words_of(output: OutputConfig, said: Said) -> Words:
    """What XMP is to say. Raises: PoorAnswer when nothing is left of the answers."""
    caption, tags = captions_and_tags(output, [result for result in said.results if isinstance(result, str)])
    if not caption and not tags:
        raise PoorAnswer(_nothing_left(said, output))
    return Words(caption or None, tags, said.model)


def content_of(output: OutputConfig, said: Said, existing: bytes | None, rule: str) -> bytes | None:
    """What the sidecar is to hold; None when it holds that already. existing: its bytes, None when it is not there.

    Raises: PoorAnswer when there is nothing to write (an empty caption file stops a trainer); UnfitSidecar when
    nothing can be added to what is there.
    """
    if output.is_xmp:
        return merged(existing, words_of(output, said), rule)
    if output.is_structured:
        if not any(isinstance(result, dict) or result.strip() for result in said.results):
            raise PoorAnswer(_nothing_left(said, output))
        return f"{render_json(said.image_name, said.size_px, said.asks, said.results)}\n".encode()
    results = [result for result in said.results if isinstance(result, str)]
    text = shape(output, results).strip()
    if not text:
        raise PoorAnswer(_nothing_left(said, output))
    before = _text_of(existing) if existing is not None and rule in ADDS else ""
    if before:
        lacking = shape(output, results, _known_tags(output, before)).strip()
        if not lacking or any(_is_there(output, rule, before, each) for each in (text, lacking)):
            return None
        text = lacking
        first, second = (before, text) if rule == "append" else (text, before)
        text = first + separator(output, first) + second
    return f"{text}\n".encode()


def _nothing_left(said: Said, output: OutputConfig) -> str:
    prompts = " and ".join(ask.prompt for ask in said.asks)
    if not any(isinstance(result, str) and result.strip() for result in said.results):
        return f"the model's answer to {prompts} was empty; nothing was written"
    return f"the options of {output.ending} leave nothing of the answer to {prompts}; nothing was written"


def _text_of(existing: bytes) -> str:
    """The text that is there, without blanks around it. Raises: UnfitSidecar."""
    try:
        return existing.decode("utf-8").removeprefix(BOM).strip()
    except UnicodeDecodeError as error:
        raise UnfitSidecar(
            f"its sidecar is not UTF-8 ({error}), so nothing was added to it; save it as UTF-8"
        ) from None


def _known_tags(output: OutputConfig, before: str) -> Collection[str]:
    """The keys of tags that are there, where only tags are added, with commas: none comes twice."""
    only_tags = output.template is None and output.join is None and all(token == TAGS for token, _ in output.asked)
    return {key_of_tag(tag) for tag in split_tags(before)} if only_tags else ()


def _is_there(output: OutputConfig, rule: str, before: str, text: str) -> bool:
    """Tell whether a file holds a text already, whatever its blanks: without a ledger, too, nothing comes twice."""
    words = [re.escape(word) for word in text.split()]
    if re.search(r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)", before):
        return True
    # Where it would be added, nothing need tell where it ends: `join` may be anything.
    if rule == "prepend":
        return before.startswith((text + separator(output, text)).rstrip())
    first = before.removesuffix(text)
    return first != before and first.endswith(separators(output))
