"""What one daemon sends another: a picture and all that is asked about it, and the answers; both ends check it all.

A question is a line of JSON and, behind it, the picture's bytes as they are. An offer, which says what a daemon answers
with, and an answer are JSON. Nothing of it is believed: a daemon elsewhere may be another program, or another version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from florence_daemon.engine.protocol import Answer, Ask, Done, Resized, Served, Stages
from florence_daemon.errors import MalformedAsk, PeerError, ServerError

# The form of everything here; a daemon that speaks another one is told so.
VERSION = 1
PATH = "/ask"
MEDIA_TYPE = "application/octet-stream"
# The header that names the class in `errors` that a refusal stands for.
ERROR_HEADER = "Florence-Error"
# The longest line before a picture: more than any folder's outputs ask.
MAX_LINE_BYTES = 2 * 2**20
# The most brackets and commas of that line, those in texts too: an empty list takes 28 times its bytes in memory.
MAX_MEMBERS = 200_000
MAX_ASKS = 256
MAX_TEXT = 4000
# Far more than a model can write: `max_new_tokens` of letters, or a polygon in every token.
MAX_RESULT_CHARACTERS = 2**20
MAX_NUMBERS = 100_000
MAX_SIDE_PX = 10**9
PLACES = ("bboxes", "quad_boxes", "polygons")
LABELS = ("labels", "bboxes_labels", "polygons_labels")

Members = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A picture and all that is asked about it. is_urgent: a person waits for the answer."""

    picture: bytes | Resized
    asks: tuple[Ask, ...]
    is_urgent: bool = False


@dataclass(frozen=True)
class Offer:
    """What a daemon answers with.

    at_once: how many questions keep it busy. side_px: of the square that its model sees, None while that is not loaded.
    max_body_bytes: the longest question. error: why its model cannot be had, as it was last seen.
    """

    served: Served
    at_once: int
    side_px: int | None
    max_body_bytes: int
    error: str | None = None


def pack_question(question: Question) -> tuple[bytes, bytes]:
    """Write a question down, in two pieces: the picture is not copied."""
    picture = question.picture
    line = {
        "version": VERSION,
        "urgent": question.is_urgent,
        "size_px": picture.size_px if isinstance(picture, Resized) else None,
        "asks": [asdict(ask) for ask in question.asks],
    }
    return json.dumps(line).encode("ascii") + b"\n", picture.content if isinstance(picture, Resized) else picture


def unpack_question(body: bytes) -> Question:
    """Read a question. Raises: MalformedAsk, PeerError for another version."""
    end = body.find(b"\n", 0, MAX_LINE_BYTES)
    if end < 0 or sum(body.count(sign, 0, end) for sign in (b"[", b"{", b",")) > MAX_MEMBERS:
        raise MalformedAsk("the line before the picture is missing, or too long")
    try:
        line = _parse(body[:end])
        version = _whole(line, "version", 0, 10**6)
        if version != VERSION:
            raise PeerError(_other_version("the daemon that asks", version))
        asks = _list(line, "asks", MAX_ASKS)
        picture: bytes | Resized = body[end + 1 :]
        if line.get("size_px") is not None:
            picture = Resized(body[end + 1 :], _size(line))
        return Question(picture, tuple(map(_ask, asks)), _member(line, "urgent", bool))
    except _Wrong as wrong:
        raise MalformedAsk(f"not what a Florence Daemon asks: {wrong}") from None


def pack_offer(offer: Offer) -> Members:
    """Write an offer down, for JSON."""
    return {"version": VERSION, **asdict(offer)}


def unpack_offer(body: bytes, server: str) -> Offer:
    """Read an offer. server: whom messages name. Raises: ServerError."""
    return _from_server(body, server, lambda members: _offer(members, server))


def pack_answer(offer: Offer, done: Done) -> Members:
    """Write the answers down, for JSON, and what is offered now."""
    return {
        "offer": pack_offer(offer),
        "answers": [asdict(answer) for answer in done.answers],
        "size_px": done.size_px,
        "stages": asdict(done.stages),
    }


def unpack_answer(body: bytes, server: str, asks: Sequence[Ask]) -> tuple[Offer, Done]:
    """Read the answers to these asks. Raises: ServerError."""

    def read(members: Members) -> tuple[Offer, Done]:
        answers = tuple(map(_answer, _list(members, "answers", MAX_ASKS)))
        if [answer.prompt for answer in answers] != [ask.prompt for ask in asks]:
            raise _Wrong("the answers are not those to what was asked")
        stages = {name: _number(_mapping(members, "stages"), name, 0, 1e9) for name in asdict(Stages())}
        return _offer(_mapping(members, "offer"), server), Done(0, answers, _size(members), Stages(**stages))

    return _from_server(body, server, read)


class _Wrong(ValueError):
    """A member is missing, or not what it must be."""


def _from_server(body: bytes, server: str, read: Callable[[Members], Any]) -> Any:
    try:
        return read(_parse(body))
    except _Wrong as wrong:
        raise ServerError(f"{server}: what answers there is not a Florence Daemon that can be asked: {wrong}") from None


def _other_version(who: str, version: int) -> str:
    age = "newer" if version > VERSION else "older"
    return f"{who} is {age} than this program (it speaks version {version}, and {VERSION} is spoken here); update both"


def _offer(members: Members, server: str) -> Offer:
    version = _whole(members, "version", 0, 10**6)
    if version != VERSION:
        raise ServerError(_other_version(server, version))
    served = _mapping(members, "served")
    side_px, error = members.get("side_px"), members.get("error")
    return Offer(
        Served(
            _text(served, "name", 1000),
            None if served.get("revision") is None else _text(served, "revision", 1000),
            _text(served, "precision", 100),
            None if served.get("image_size") is None else _whole(served, "image_size", 1, 4096),
            _member(served, "fast_decode", bool),
        ),
        _whole(members, "at_once", 1, 10_000),
        None if side_px is None else _whole(members, "side_px", 1, 4096),
        _whole(members, "max_body_bytes", 1, 2**40),
        None if error is None else _text(members, "error", 10_000),
    )


def _ask(members: Any) -> Ask:
    if not isinstance(members, dict) or set(members) != set(asdict(Ask(""))):
        raise _Wrong("an ask has other members than it should")
    text = members["text"]
    return Ask(
        _text(members, "prompt", MAX_TEXT),
        None if text is None else _text(members, "text", MAX_TEXT),
        _maybe_whole(members, "num_beams", 1, 16),
        _maybe_whole(members, "max_new_tokens", 1, 4096),
        _number(members, "temperature", 0, 100),
        _number(members, "top_p", 0, 1),
        _maybe_whole(members, "seed", 0, 2**64 - 1),
        _maybe_whole(members, "no_repeat_ngram_size", 0, 4096),
    )


def _answer(members: Any) -> Answer:
    if not isinstance(members, dict):
        raise _Wrong("an answer is no object")
    return Answer(
        _text(members, "prompt", MAX_TEXT),
        _result(members.get("result")),
        _whole(members, "tokens", 0, 10**6),
        _member(members, "is_cut", bool),
        _whole(members, "prompt_tokens", 0, 10**6),
    )


def _result(value: Any) -> str | dict[str, Any]:
    if isinstance(value, str) and len(value) <= MAX_RESULT_CHARACTERS:
        return value
    if not isinstance(value, dict) or not set(value) <= {*PLACES, *LABELS}:
        raise _Wrong("a result is neither a text nor places")
    for name, members in value.items():
        is_labels = name in LABELS
        if not isinstance(members, list) or (is_labels and not all(isinstance(each, str) for each in members)):
            raise _Wrong(f"{name} of a result is no list as it should be")
        if not is_labels and _count(members, 4) > MAX_NUMBERS:
            raise _Wrong(f"{name} of a result are too many")
    return value


def _count(value: Any, depth: int) -> int:
    """How many numbers lists within lists hold."""
    if isinstance(value, list) and depth:
        return sum(_count(each, depth - 1) for each in value)
    if type(value) in (int, float) and -MAX_SIDE_PX <= value <= MAX_SIDE_PX:
        return 1
    raise _Wrong("a place holds something that is no number")


def _parse(body: bytes) -> Members:
    try:
        members = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _Wrong("it is no JSON") from None
    if not isinstance(members, dict):
        raise _Wrong("it is no JSON object")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _member(members: Mapping[str, Any], name: str, kind: type) -> Any:
    value = members.get(name)
    if type(value) is not kind:
        raise _Wrong(f"{name} is {value!r:.60}")
    return value


def _mapping(members: Mapping[str, Any], name: str) -> Members:
    value: Members = _member(members, name, dict)
    return value


def _list(members: Mapping[str, Any], name: str, most: int) -> list[Any]:
    value: list[Any] = _member(members, name, list)
    if not 0 < len(value) <= most:
        raise _Wrong(f"{name} are {len(value)}; at least one, at most {most}")
    return value


def _text(members: Mapping[str, Any], name: str, most: int) -> str:
    value: str = _member(members, name, str)
    if len(value) > most:
        raise _Wrong(f"{name} has {len(value)} characters; at most {most}")
    return value


def _whole(members: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value: int = _member(members, name, int)
    if not low <= value <= high:
        raise _Wrong(f"{name} is {value!r:.60}; from {low} to {high}")
    return value


def _maybe_whole(members: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    return None if members[name] is None else _whole(members, name, low, high)


def _number(members: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value: Any = members.get(name)
    if type(value) not in (int, float) or not low <= value <= high:
        raise _Wrong(f"{name} is {value!r:.60}; from {low:g} to {high:g}")
    return float(value)


def _size(members: Mapping[str, Any]) -> tuple[int, int]:
    sides = _list(members, "size_px", 2)
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= MAX_SIDE_PX for side in sides):
        raise _Wrong(f"size_px is {sides!r:.60}")
    return (sides[0], sides[1])
