"""What daemons send each other comes out as it went in, and anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from florence_daemon.engine.protocol import Answer, Ask, Done, Resized, Served, Stages
from florence_daemon.errors import MalformedAsk, PeerError, ServerError
from florence_daemon.exchange import (
    MAX_LINE_BYTES,
    Offer,
    Question,
    pack_answer,
    pack_offer,
    pack_question,
    unpack_answer,
    unpack_offer,
    unpack_question,
)

ASKS = (Ask("<CAPTION>"), Ask("<OD>", "cät\n\ud800", 1, 64, 0.7, 0.9, 7, 0))
PLACES = {"bboxes": [[0.5, 1, 2, 3.25]], "labels": ["cat"], "polygons": [[[1.0, 2.0]]], "polygons_labels": [""]}
DONE = Done(0, (Answer("<CAPTION>", "a cat", 7, True, 580), Answer("<OD>", PLACES)), (640, 480), Stages(0.1, 0.2, 0.3))
OFFER = Offer(Served("some/model", "main", "int8", 576, True), 12, 768, 2**25, "no memory")


@pytest.mark.parametrize("picture", [b"", b"\n\xff\0", Resized(b"\x89PNG\n", (4000, 3000))])
@pytest.mark.parametrize("is_urgent", [True, False])
def test_question_comes_out_as_it_went_in(picture: bytes | Resized, is_urgent: bool) -> None:
    question = Question(picture, ASKS, is_urgent)
    assert unpack_question(b"".join(pack_question(question))) == question


def test_longest_question_fits_into_its_line() -> None:
    asks = tuple(
        Ask("<OD>", "\U0001f600" * 2000, 16, 4096, 0.123456789, 0.987654321, 2**64 - 1, 4096) for _ in range(32)
    )
    body = b"".join(pack_question(Question(b"", asks)))
    assert len(body) <= MAX_LINE_BYTES
    assert unpack_question(body).asks == asks


@pytest.mark.parametrize("offer", [OFFER, replace(OFFER, served=Served("m"), side_px=None, error=None)])
def test_offer_comes_out_as_it_went_in(offer: Offer) -> None:
    assert unpack_offer(json.dumps(pack_offer(offer)).encode(), "http://a") == offer


def test_answer_comes_out_as_it_went_in() -> None:
    assert unpack_answer(json.dumps(pack_answer(OFFER, DONE)).encode(), "http://a", ASKS) == (OFFER, DONE)


def question_with(change: Callable[[Any], Any]) -> bytes:
    line, picture = pack_question(Question(b"picture", ASKS))
    members = json.loads(line)
    change(members)
    return json.dumps(members).encode() + b"\n" + picture


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.pop("version"),
        lambda line: line.update(version=True),
        lambda line: line.update(urgent=1),
        lambda line: line.update(size_px=[640]),
        lambda line: line.update(size_px=[640, 0]),
        lambda line: line.update(size_px=[640, 480.0]),
        lambda line: line.update(asks=[]),
        lambda line: line.update(asks={}),
        lambda line: line.update(asks=line["asks"] * 129),
        lambda line: line["asks"].append(None),
        lambda line: line["asks"][0].pop("seed"),
        lambda line: line["asks"][0].update(more=1),
        lambda line: line["asks"][0].update(prompt=7),
        lambda line: line["asks"][0].update(prompt="x" * 4001),
        lambda line: line["asks"][0].update(text=["x"]),
        lambda line: line["asks"][0].update(num_beams=17),
        lambda line: line["asks"][0].update(num_beams=True),
        lambda line: line["asks"][0].update(max_new_tokens=0),
        lambda line: line["asks"][0].update(temperature=-1),
        lambda line: line["asks"][0].update(temperature=10**400),
        lambda line: line["asks"][0].update(top_p="1"),
        lambda line: line["asks"][0].update(seed=2**64),
        lambda line: line["asks"][0].update(seed=-1),
    ],
)
def test_question_with_a_wrong_member_is_refused(change: Callable[[Any], Any]) -> None:
    with pytest.raises(MalformedAsk, match="not what a Florence Daemon asks"):
        unpack_question(question_with(change))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"picture without a line",
        b" " * MAX_LINE_BYTES + b"\n",
        b"[" * 500_000 + b"\n",
        b"[" * 9_000 + b"\n",
        b"null\n",
        b'{"version": NaN}\n',
        b"\xff\n",
        b'{"version": ' + b"9" * 9_000 + b"}\n",
    ],
)
def test_body_that_is_no_question_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedAsk):
        unpack_question(body)


@pytest.mark.parametrize(("version", "age"), [(2, "newer"), (0, "older")])
def test_other_version_is_told_from_nonsense(version: int, age: str) -> None:
    with pytest.raises(PeerError, match=rf"is {age} than this program.*update both"):
        unpack_question(question_with(lambda line: line.update(version=version, asks="in another form")))
    offer = pack_offer(OFFER) | {"version": version, "served": "in another form"}
    with pytest.raises(ServerError, match=rf"http://a is {age}"):
        unpack_offer(json.dumps(offer).encode(), "http://a")


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer.pop("offer"),
        lambda answer: answer["offer"].update(at_once=0),
        lambda answer: answer["offer"].update(side_px=0),
        lambda answer: answer["offer"]["served"].update(name=None),
        lambda answer: answer["offer"]["served"].update(fast_decode=0),
        lambda answer: answer.update(answers=answer["answers"][:1]),
        lambda answer: answer.update(answers=answer["answers"][::-1]),
        lambda answer: answer.update(answers=[None, None]),
        lambda answer: answer["answers"][0].update(tokens=-1),
        lambda answer: answer["answers"][0].update(is_cut=0),
        lambda answer: answer["answers"][0].update(result=7),
        lambda answer: answer["answers"][0].update(result="x" * (2**20 + 1)),
        lambda answer: answer["answers"][1]["result"].update(more=[]),
        lambda answer: answer["answers"][1]["result"].update(labels="cat"),
        lambda answer: answer["answers"][1]["result"].update(labels=[7]),
        lambda answer: answer["answers"][1]["result"].update(bboxes=[["1"]]),
        lambda answer: answer["answers"][1]["result"].update(bboxes=[[True]]),
        lambda answer: answer["answers"][1]["result"].update(bboxes=[[[[[1.0]]]]]),
        lambda answer: answer["answers"][1]["result"].update(bboxes=[[10**400]]),
        lambda answer: answer["answers"][1]["result"].update(bboxes=[[0] * 100_001]),
        lambda answer: answer.update(size_px=[0, 0]),
        lambda answer: answer["stages"].pop("text_s"),
        lambda answer: answer["stages"].update(vision_s=-1),
    ],
)
def test_answer_with_a_wrong_member_is_refused(change: Callable[[Any], Any]) -> None:
    answer = json.loads(json.dumps(pack_answer(OFFER, DONE)))
    change(answer)
    with pytest.raises(ServerError, match="http://a: what answers there is not a Florence Daemon that can be asked"):
        unpack_answer(json.dumps(answer).encode(), "http://a", ASKS)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"[" * 200_000, b"{}"])
def test_answer_of_another_program_is_refused(body: bytes) -> None:
    with pytest.raises(ServerError):
        unpack_offer(body, "http://a")
    with pytest.raises(ServerError):
        unpack_answer(body, "http://a", ASKS)
