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
from florence_daemon.tasks import TASKS, parse_answer

ASKS = (Ask("<CAPTION>"), Ask("<OPEN_VOCABULARY_DETECTION>", "cät\n\ud800", 1, 64, 0.7, 0.9, 7, 0))
BOX, OUTLINE = [0.5, 1, 2, 3.25], [1.0, 2.0, 3, 4, 5, 6]
PLACES = {
    "bboxes": [BOX, BOX],
    "bboxes_labels": ["cat", ""],
    "polygons": [[OUTLINE, OUTLINE]],
    "polygons_labels": ["cät\n\t"],
}
DONE = Done(
    0,
    (Answer("<CAPTION>", "a\tcat\n", 7, True, 580), Answer(ASKS[1].prompt, PLACES)),
    (640, 480),
    Stages(0.1, 0.2, 0.3),
)
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
        lambda answer: answer["offer"]["served"].update(name="some/model\x1b]0;"),
        lambda answer: answer["offer"].update(error="\0"),
        lambda answer: answer["offer"]["served"].update(fast_decode=0),
        lambda answer: answer.update(answers=answer["answers"][:1]),
        lambda answer: answer.update(answers=answer["answers"][::-1]),
        lambda answer: answer.update(answers=[None, None]),
        lambda answer: answer["answers"][0].update(tokens=-1),
        lambda answer: answer["answers"][0].update(is_cut=0),
        lambda answer: answer["answers"][0].update(result=7),
        lambda answer: answer["answers"][0].update(result="x" * (2**20 + 1)),
        lambda answer: answer["answers"][0].update(result="a\0cat"),
        lambda answer: answer["answers"][0].update(result="a \x1b[2Jcat"),
        lambda answer: answer["answers"][0].update(result="a \x9b2Jcat"),
        lambda answer: answer["answers"][0].update(result="a \ud800cat"),
        lambda answer: answer["answers"][0].update(result=PLACES),
        lambda answer: answer["answers"][1].update(result="a cat"),
        lambda answer: answer["answers"][1]["result"].update(more=[]),
        lambda answer: answer["answers"][1]["result"].pop("polygons"),
        lambda answer: answer["answers"][1]["result"].update(bboxes_labels="cat"),
        lambda answer: answer["answers"][1]["result"].update(bboxes_labels=[7, 7]),
        lambda answer: answer["answers"][1]["result"].update(bboxes_labels=["cat"]),
        lambda answer: answer["answers"][1]["result"].update(bboxes_labels=["cat", "\x1b"]),
        lambda answer: answer["answers"][1]["result"].update(bboxes_labels=["x" * 2**19, "x" * (2**19 + 1)]),
        lambda answer: answer["answers"][1]["result"].update(bboxes=[BOX, BOX[:3]]),
        lambda answer: answer["answers"][1]["result"].update(bboxes=[BOX, ["1", 1, 1, 1]]),
        lambda answer: answer["answers"][1]["result"].update(bboxes=[BOX, [True, 1, 1, 1]]),
        lambda answer: answer["answers"][1]["result"].update(bboxes=[BOX, [BOX, BOX, BOX, BOX]]),
        lambda answer: answer["answers"][1]["result"].update(bboxes=[BOX, [10**400, 1, 1, 1]]),
        lambda answer: answer["answers"][1]["result"].update(bboxes=[BOX] * 25_001, bboxes_labels=[""] * 25_001),
        lambda answer: answer["answers"][1]["result"].update(polygons=[OUTLINE]),
        lambda answer: answer["answers"][1]["result"].update(polygons=[[OUTLINE[:3]]]),
        lambda answer: answer["answers"][1]["result"].update(polygons=[[[0] * 100_002]]),
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


@pytest.mark.parametrize("depth", [300, 900, 960, 990, 1000, 3000])
def test_member_of_lists_within_lists_is_refused_however_deep(depth: int) -> None:
    body = b'{"version": ' + b"[" * depth + b"]" * depth + b"}\n"
    with pytest.raises(MalformedAsk):
        unpack_question(body)
    with pytest.raises(ServerError):
        unpack_offer(body, "http://a")


def test_each_task_may_be_answered_as_the_model_answers_it() -> None:
    words = "cat<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>"
    for task in TASKS:
        for said in (words, f"cat<poly>{words[3:]}<sep>{words[3:]}</poly>", "\0\x1b[2Ja cat,\r\nblack\x9b", ""):
            ask, done = (
                Ask(task.token),
                Done(0, (Answer(task.token, parse_answer(task, said, (9, 9))),), (9, 9), Stages()),
            )
            assert unpack_answer(json.dumps(pack_answer(OFFER, done)).encode(), "http://a", (ask,)) == (OFFER, done)


LISTS = b'{"offer": [' + b"[]," * 2_000_000 + b"0]}"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"[" * 200_000, b"{}", LISTS], ids=range(7))
def test_answer_of_another_program_is_refused(body: bytes) -> None:
    with pytest.raises(ServerError):
        unpack_offer(body, "http://a")
    with pytest.raises(ServerError):
        unpack_answer(body, "http://a", ASKS)
