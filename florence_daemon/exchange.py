"""What one daemon sends another: a picture and all that is asked about it, and the answers; both ends check it all.

A question is a line of JSON and, behind it, the picture's bytes as they are. An offer, which says what a daemon answers
with, and an answer are JSON. Nothing of it is believed: a daemon elsewhere may be another program, or another version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from florence_daemon.engine.protocol import Answer, Ask, Done, Resized, Served, Stages
from florence_daemon.errors import MalformedAsk, PeerError, ServerError
from florence_daemon.tasks import Task, split_prompt
from florence_daemon.untrusted import Members, Wrong, items, mapping, maybe_whole, member, number, parse, text, whole

# The form of everything here; a daemon that speaks another one is told so.
VERSION = 1
PATH = "/ask"
MEDIA_TYPE = "application/octet-stream"
# The header that names the class in `errors` that a refusal stands for.
ERROR_HEADER = "Florence-Error"
# The longest line before a picture: more than any folder's outputs ask.
MAX_LINE_BYTES = 2 * 2**20
# The most brackets and commas of that line, those in texts too, and of an answer, which may have one in every token.
MAX_MEMBERS = 200_000
MAX_ANSWER_MEMBERS = 2_000_000
MAX_ASKS = 256
MAX_TEXT = 4000
# Far more than a model can write: `max_new_tokens` of letters, or a polygon in every token.
MAX_RESULT_CHARACTERS = 2**20
MAX_NUMBERS = 100_000
MAX_SIDE_PX = 10**9
# The members of an answer that is no text: places, and a label to each.
BOXES = (("bboxes", "labels"),)
PLACES: dict[str, tuple[tuple[str, str], ...]] = {
    "boxes": BOXES,
    "proposals": BOXES,
    "grounding": BOXES,
    "quads": (("quad_boxes", "labels"),),
    "polygons": (("polygons", "labels"),),
    "open vocabulary": (("bboxes", "bboxes_labels"), ("polygons", "polygons_labels")),
}
# Numbers to a place; an outline of a polygon may have any, two to a point.
NUMBERS = {"bboxes": 4, "quad_boxes": 8}


@dataclass(frozen=True)
class Question:
    """A picture and all that is asked about it. is_urgent: a person waits for the answer."""

    picture: bytes | Resized
    asks: tuple[Ask, ...]
    is_urgent: bool = False


@dataclass(frozen=True)
class Offer:
    """What a daemon answers with.

    at_once: how many questions keep it busy. side_px: of the square that its model sees, None until that was loaded
    once. max_body_bytes: the longest question. error: why its model cannot be had, as it was last seen.
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
    if end < 0:
        raise MalformedAsk("the line before the picture is missing, or too long")
    try:
        line = parse(body[:end], MAX_MEMBERS)
        version = whole(line, "version", 0, 10**6)
        if version != VERSION:
            raise PeerError(_other_version("the daemon that asks", version))
        asks = items(line, "asks", MAX_ASKS)
        picture: bytes | Resized = body[end + 1 :]
        if line.get("size_px") is not None:
            picture = Resized(body[end + 1 :], _size(line))
        return Question(picture, tuple(map(_ask, asks)), member(line, "urgent", bool))
    except Wrong as wrong:
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
        given = items(members, "answers", MAX_ASKS)
        if len(given) != len(asks):
            raise Wrong("the answers are not those to what was asked")
        answers = tuple(map(_answer, given, asks))
        stages = {name: number(mapping(members, "stages"), name, 0, 1e9) for name in asdict(Stages())}
        return _offer(mapping(members, "offer"), server), Done(0, answers, _size(members), Stages(**stages))

    return _from_server(body, server, read)


def _from_server(body: bytes, server: str, read: Callable[[Members], Any]) -> Any:
    try:
        return read(parse(body, MAX_ANSWER_MEMBERS))
    except Wrong as wrong:
        raise ServerError(f"{server}: what answers there is not a Florence Daemon that can be asked: {wrong}") from None


def _other_version(who: str, version: int) -> str:
    age = "newer" if version > VERSION else "older"
    return f"{who} is {age} than this program (it speaks version {version}, and {VERSION} is spoken here); update both"


def _offer(members: Members, server: str) -> Offer:
    version = whole(members, "version", 0, 10**6)
    if version != VERSION:
        raise ServerError(_other_version(server, version))
    served = mapping(members, "served")
    side_px, error = members.get("side_px"), members.get("error")
    return Offer(
        Served(
            text(served, "name", 1000),
            None if served.get("revision") is None else text(served, "revision", 1000),
            text(served, "precision", 100),
            None if served.get("image_size") is None else whole(served, "image_size", 1, 4096),
            member(served, "fast_decode", bool),
        ),
        whole(members, "at_once", 1, 10_000),
        None if side_px is None else whole(members, "side_px", 1, 4096),
        whole(members, "max_body_bytes", 1, 2**40),
        None if error is None else text(members, "error", 10_000),
    )


def _ask(members: Any) -> Ask:
    if not isinstance(members, dict) or set(members) != set(asdict(Ask(""))):
        raise Wrong("an ask has other members than it should")
    return Ask(
        text(members, "prompt", MAX_TEXT, is_shown=False),
        None if members["text"] is None else text(members, "text", MAX_TEXT, is_shown=False),
        maybe_whole(members, "num_beams", 1, 16),
        maybe_whole(members, "max_new_tokens", 1, 4096),
        number(members, "temperature", 0, 100),
        number(members, "top_p", 0, 1),
        maybe_whole(members, "seed", 0, 2**64 - 1),
        maybe_whole(members, "no_repeat_ngram_size", 0, 4096),
    )


def _answer(members: Any, ask: Ask) -> Answer:
    if not isinstance(members, dict) or members.get("prompt") != ask.prompt:
        raise Wrong("the answers are not those to what was asked")
    return Answer(
        ask.prompt,
        _result(members.get("result"), split_prompt(ask.prompt)[0]),
        whole(members, "tokens", 0, 10**6),
        member(members, "is_cut", bool),
        whole(members, "prompt_tokens", 0, 10**6),
    )


def _result(value: Any, task: Task) -> str | dict[str, Any]:
    """Check that a result is of the form that answers this task."""
    forms = PLACES.get(task.answer)
    if forms is None:
        return text({"result": value}, "result", MAX_RESULT_CHARACTERS)
    if not isinstance(value, dict) or set(value) != {name for form in forms for name in form}:
        raise Wrong(f"a result is not what answers {task.token}")
    for places, labels in forms:
        named = items(value, labels, MAX_NUMBERS, least=0)
        if len(items(value, places, MAX_NUMBERS, least=0)) != len(named):
            raise Wrong(f"{places} of a result are not as many as its {labels}")
        if sum(len(text({labels: each}, labels, MAX_RESULT_CHARACTERS)) for each in named) > MAX_RESULT_CHARACTERS:
            raise Wrong(f"{labels} of a result are too long")
        if sum(_count(each, places) for each in value[places]) > MAX_NUMBERS:
            raise Wrong(f"{places} of a result are too many")
    return value


def _count(place: Any, kind: str) -> int:
    """How many numbers a place has, which must be of the form that its kind has."""
    if kind == "polygons":
        if not isinstance(place, list) or not all(isinstance(outline, list) for outline in place):
            raise Wrong("polygons of a result are no lists of outlines")
        is_right = all(len(outline) >= 4 and len(outline) % 2 == 0 for outline in place)
        numbers = [each for outline in place for each in outline]
    else:
        is_right = isinstance(place, list) and len(place) == NUMBERS[kind]
        numbers = place if is_right else []
    if not is_right or not all(type(each) in (int, float) and abs(each) <= MAX_SIDE_PX for each in numbers):
        raise Wrong(f"{kind} of a result hold what is no place")
    return len(numbers)


def _size(members: Members) -> tuple[int, int]:
    sides = items(members, "size_px", 2)
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= MAX_SIDE_PX for side in sides):
        raise Wrong("size_px is not two sides")
    return (sides[0], sides[1])
