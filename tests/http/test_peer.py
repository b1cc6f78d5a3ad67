"""`/ask`: what another daemon asks is answered whole, passes every guard, and fails by the name of its error."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest

from florence_daemon import errors
from florence_daemon.engine.protocol import Ask, Resized
from florence_daemon.exchange import ERROR_HEADER, MEDIA_TYPE, Question, pack_offer, pack_question, unpack_answer
from tests.conftest import FakeEngine, done, wait_for
from tests.http.api import PICTURE, Api, error_of, serving

ASKS = (Ask("<CAPTION>"), Ask("<REGION_TO_OCR>", "<loc_1><loc_2><loc_3><loc_4>", 1, 64, 0.7, 0.9, 7, 0))
HEADERS = {"Content-Type": MEDIA_TYPE}


def ask(api: Api, picture: bytes | Resized = PICTURE, **members: Any) -> httpx.Response:
    body = b"".join(pack_question(Question(picture, ASKS, **members)))
    return api.http.post("/ask", content=body, headers=HEADERS)


def test_offer_says_what_there_is(api: Api) -> None:
    assert api.http.get("/ask").json() == pack_offer(api.offer)


@pytest.mark.parametrize("picture", [PICTURE, Resized(PICTURE, (4000, 3000))])
def test_question_reaches_the_engine_and_its_answer_comes_back_whole(api: Api, picture: bytes | Resized) -> None:
    offer, answer = unpack_answer(ask(api, picture).content, "", ASKS)
    assert api.engine.asked == [(picture, ASKS, False)]
    assert offer == api.offer
    assert answer.answers == done(ASKS).answers
    assert answer.size_px == (10, 10)


def test_person_who_waits_goes_first(api: Api) -> None:
    ask(api, is_urgent=True)
    assert [urgent for _, _, urgent in api.engine.asked] == [True]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.TruncatedPicture("the picture is truncated (JPEG)"), 400),
        (errors.OtherSize("the picture was resized"), 400),
        (errors.PromptError("Invalid prompt"), 400),
        (errors.EngineError("out of memory"), 500),
        (errors.EngineCrashed("three times"), 422),
        (errors.CheckpointError("no such model"), 503),
    ],
)
def test_refusal_names_the_error_and_says_what_the_engine_said(api: Api, error: Exception, status: int) -> None:
    api.engine.error = error
    response = ask(api)
    assert response.status_code == status
    assert response.headers[ERROR_HEADER] == type(error).__name__
    assert error_of(response) == str(error)


def test_daemon_without_a_model_of_its_own_is_not_asked(api: Api) -> None:
    api.refusal = errors.PeerError("this daemon has no model of its own")
    for response in (api.http.get("/ask"), ask(api)):
        assert response.status_code == 409
        assert response.headers[ERROR_HEADER] == "PeerError"
    assert api.engine.asked == []


def test_what_is_no_question_is_refused(api: Api) -> None:
    assert api.http.post("/ask", content=b"x", headers={"Content-Type": "image/png"}).status_code == 415
    response = api.http.post("/ask", content=PICTURE, headers=HEADERS)
    assert response.status_code == 400
    assert response.headers[ERROR_HEADER] == "MalformedAsk"
    newer = json.dumps({"version": 2}).encode() + b"\n"
    response = api.http.post("/ask", content=newer, headers=HEADERS)
    assert response.status_code == 409
    assert "update both" in error_of(response)


@pytest.mark.parametrize("asked", [Ask("<NO_SUCH_TASK>"), Ask("<CAPTION>", "a text"), Ask("<OD>", "\ud800")])
def test_question_that_no_model_can_answer_loads_none(api: Api, asked: Ask) -> None:
    body = b"".join(pack_question(Question(PICTURE, (ASKS[0], asked))))
    response = api.http.post("/ask", content=body, headers=HEADERS)
    assert response.status_code == 400
    assert response.headers[ERROR_HEADER] == "PromptError"
    assert api.engine.asked == []


def test_token_is_asked_for(engine: FakeEngine) -> None:
    with serving(engine, token="secret") as api:
        assert ask(api).status_code == 401
        assert api.http.get("/ask").status_code == 401
        api.http.headers["Authorization"] = "Bearer secret"
        assert ask(api).status_code == 200


def test_other_hosts_and_pages_are_refused(api: Api) -> None:
    assert api.http.get("/ask", headers={"Host": "evil.example"}).status_code == 403
    response = api.http.post("/ask", content=b"", headers=HEADERS | {"Origin": "https://evil.example"})
    assert response.status_code == 403


def test_too_large_question_is_refused(api: Api) -> None:
    response = ask(api, b"x" * 2**21)
    assert response.status_code == 413
    assert ERROR_HEADER not in response.headers


def test_folders_work_leaves_half_of_the_places_to_people(engine: FakeEngine) -> None:
    engine.holds_answers = True
    with serving(engine, max_queued=4) as api:
        threads = [threading.Thread(target=ask, args=(api,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(engine.waiting) == 2)
        refused = ask(api)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert refused.headers[ERROR_HEADER] == "QueueFull"
        person = threading.Thread(target=api.process)
        person.start()
        wait_for(lambda: len(engine.waiting) == 3)
        for future in engine.waiting:
            future.set_result(done(ASKS))
        for thread in (*threads, person):
            thread.join()


def test_question_whose_daemon_hangs_up_costs_nothing(engine: FakeEngine) -> None:
    engine.holds_answers = True
    with serving(engine) as api:
        engine.in_flight = 1
        first = threading.Thread(target=ask, args=(api,))
        first.start()
        wait_for(lambda: len(engine.waiting) == 1)
        body = b"".join(pack_question(Question(PICTURE, ASKS)))
        head = f"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}"
        with api.connect() as client:
            client.sendall(head.encode() + b"\r\n\r\n" + body)
            wait_for(lambda: api.queue.counts()["backfill"] == 1)
        wait_for(lambda: api.queue.counts()["backfill"] == 0, what="the question to be withdrawn")
        engine.waiting[0].set_result(done(ASKS))
        first.join()
        assert len(engine.asked) == 1
