"""The loop for a backend that takes one picture at a time."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from florence_daemon.demo_pictures import encode_picture
from florence_daemon.engine.one_by_one import OneByOne
from florence_daemon.engine.preprocess import Picture
from florence_daemon.engine.protocol import Answer, Ask, Begun, Done, Failed, HasRead, Progress, Request, Stages

ASKS = (Ask("<CAPTION>"),)
PICTURE = encode_picture(Image.new("RGB", (8, 6), "red"))


def answer(picture: Picture, asks: Sequence[Ask]) -> tuple[list[Answer], Stages]:
    if asks[0].prompt == "<FAIL>":
        raise ValueError("no such picture")
    return [Answer(ask.prompt, f"{picture.size_px}") for ask in asks], Stages(vision_s=1.0, text_s=2.0)


def run(loop: OneByOne, *requests: Request) -> list[Progress]:
    replies: list[Progress] = []
    for request in requests:
        loop.put(request, replies.append)
    while loop.run_once():
        pass
    return replies


def test_requests_are_answered_in_turn_urgent_ones_first() -> None:
    requests = [Request(1, PICTURE, ASKS), Request(2, PICTURE, ASKS), Request(3, PICTURE, ASKS, urgent=True)]
    replies = run(OneByOne("cpu", answer, 8), *requests)
    assert [(type(reply), reply.id) for reply in replies] == [
        *((Begun, 3), (HasRead, 3), (Done, 3)),
        *((Begun, 1), (HasRead, 1), (Done, 1)),
        *((Begun, 2), (HasRead, 2), (Done, 2)),
    ]


def test_answer_tells_the_size_and_the_seconds_of_each_stage() -> None:
    *_, done = run(OneByOne("cpu", answer, 8), Request(1, PICTURE, ASKS))
    assert isinstance(done, Done)
    assert done.answers == (Answer("<CAPTION>", "(8, 6)"),)
    assert done.size_px == (8, 6)
    assert done.stages.decode_s > 0
    assert (done.stages.vision_s, done.stages.text_s) == (1.0, 2.0)


def test_bad_ones_fail_and_the_loop_goes_on() -> None:
    requests = [Request(1, b"no", ASKS), Request(2, PICTURE, (Ask("<FAIL>"),)), Request(3, PICTURE, ASKS)]
    replies = run(OneByOne("cpu", answer, 8), *requests)
    ends = [reply for reply in replies if isinstance(reply, Done | Failed)]
    assert [end.error for end in ends if isinstance(end, Failed)] == ["PictureError", "EngineError"]
    assert isinstance(ends[2], Done)


def test_closed_loop_ends() -> None:
    loop = OneByOne("cpu", answer, 8)
    loop.put(Request(1, PICTURE, ASKS), lambda reply: None)
    loop.close()
    assert not loop.run_once(None)
