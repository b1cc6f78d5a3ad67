"""XMP beside a picture or in it: a caption and keywords are merged into what is there, and a person's own words stay.

What this program wrote is noted in properties of its own, so that it knows its words again when they are to be
replaced, with or without a ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from florence_daemon.folders.xmp_packet import DC, DIGIKAM, EMPTY, LIGHTROOM, OWN, Packet, clean

DESCRIPTION = (DC, "description")
SUBJECT = (DC, "subject")
# Keywords in levels: Lightroom's `Animals|Cat`, digiKam's `Animals/Cat`. One that holds the sign would become levels.
LEVELS = (((LIGHTROOM, "hierarchicalSubject"), "Bag", "|"), ((DIGIKAM, "TagsList"), "Seq", "/"))
# What this program said last, and by which model.
OWN_CAPTION = (OWN, "Caption")
OWN_KEYWORDS = (OWN, "Keywords")
OWN_MODEL = (OWN, "Model")


@dataclass(frozen=True)
class Words:
    """What a picture's metadata are to say. description: None where nothing was asked for. model: who says it."""

    description: str | None
    keywords: tuple[str, ...]
    model: str


def merge(existing: bytes | None, words: Words, *, may_replace: bool = False) -> bytes:
    """Put the words into a packet, or into a new one.

    A description and keywords that a person wrote stay; may_replace: but for the description. What this program wrote
    before goes, unless a person changed it. A keyword of ours that a person took out does not come back.

    Raises: BadXml when what is there cannot be read; it is to be left alone then.
    """
    packet = Packet(EMPTY if existing is None else existing)
    _describe(packet, words.description, may_replace=may_replace)
    _tag(packet, words.keywords)
    if packet.default_text(OWN_MODEL) != words.model:
        packet.set_text(OWN_MODEL, words.model)
    return packet.as_bytes()


def is_ours(content: bytes) -> bool:
    """Tell whether this program has put its words in already. Raises: BadXml."""
    return Packet(content).default_text(OWN_MODEL) is not None


def _describe(packet: Packet, wanted: str | None, *, may_replace: bool) -> None:
    there, ours = packet.default_text(DESCRIPTION), packet.default_text(OWN_CAPTION)
    is_a_persons = there is not None and there.strip() != "" and (ours is None or _plain(there) != _plain(ours))
    if wanted is None:
        if there is not None and not is_a_persons:
            packet.remove_default_text(DESCRIPTION)
        return
    if (not is_a_persons or may_replace) and _plain(there or "") != _plain(wanted):
        packet.set_default_text(DESCRIPTION, wanted)
    if _plain(ours or "") != _plain(wanted):
        packet.set_text(OWN_CAPTION, wanted)


def _tag(packet: Packet, keywords: Iterable[str]) -> None:
    there, ours = Keywords(packet.values(SUBJECT)), Keywords(packet.values(OWN_KEYWORDS))
    taken_out = Keywords(word for word in ours if word not in there)
    wanted = Keywords(word for word in keywords if word not in taken_out)
    outdated = Keywords(word for word in ours if word in there and word not in wanted)
    new = [word for word in wanted if word not in there]
    packet.change_list(SUBJECT, "Bag", outdated.__contains__, new)
    mine = Keywords([*(word for word in wanted if word in ours), *new])
    for name, kind, border in LEVELS:
        leaves = Keywords(value.rpartition(border)[2] for value in packet.values(name))
        lacking = [word for word in mine if word not in leaves and border not in word]
        packet.change_list(name, kind, outdated.__contains__, lacking)
    noted = Keywords([*mine, *taken_out])
    if list(noted) != list(ours):
        packet.change_list(OWN_KEYWORDS, "Bag", lambda word: True, list(noted))


class Keywords:
    """Keywords in their order, each once as it was written first: case and space around it make no other word."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words: dict[str, str] = {}
        for word in words:
            if plain := _plain(word):
                self._words.setdefault(plain.casefold(), plain)

    def __iter__(self) -> Iterator[str]:
        return iter(self._words.values())

    def __contains__(self, word: str) -> bool:
        return _plain(word).casefold() in self._words


def _plain(text: str) -> str:
    """A text as it is compared: other programs may fold its lines."""
    return " ".join(clean(text).split())
