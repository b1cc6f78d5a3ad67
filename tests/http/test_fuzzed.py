"""Bad requests get a 4xx each, leave nothing in the log, and cost nobody else an answer."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import FakeEngine, Figure
from tests.http.api import PICTURE, Api, serving
from tests.http.fuzz import MAKERS, Case, cases, is_fair, send

CASES = 700


def test_stream_of_bad_requests_is_repeatable() -> None:
    assert list(itertools.islice(cases(7), 60)) == list(itertools.islice(cases(7), 60))


def test_bad_requests_get_a_4xx_and_everybody_else_the_answer(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, figure: Figure
) -> None:
    caplog.set_level(logging.WARNING)
    with serving(engine, max_queued=100, receive_timeout_s=20) as api, ThreadPoolExecutor(8) as pool:
        good = [pool.submit(api.process) for _ in range(40)]
        sent = list(itertools.islice(cases(4), CASES))
        answers = list(pool.map(lambda case: send(("127.0.0.1", api.port), case), sent))
        unfair = [
            (case.kind, case.raw[:300], got) for case, got in zip(sent, answers, strict=True) if not is_fair(case, got)
        ]
        assert unfair == []
        assert [each.result(60).json() for each in good] == [{"result": "answer to CAPTION"}] * 40
        assert api.process().status_code == 200
    assert [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR] == []
    statuses = Counter(status for got in answers for status in got)
    assert {400, 403, 404, 405, 415, 422} <= set(statuses)
    figure(f"{CASES} bad requests of {len(MAKERS)} kinds: 0 answers of 5xx, 0 tracebacks")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("order", [1, -1])
def test_body_framed_in_two_ways_is_refused_and_nothing_after_it_is_read(api: Api, version: bytes, order: int) -> None:
    framings = [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"][::order]
    smuggled = b"0\r\n\r\nPOST /retry HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    head = b"POST /process_image HTTP/" + version + b"\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    case = Case("smuggling", head + b"".join(framings) + b"\r\n" + smuggled)
    assert send(("127.0.0.1", api.port), case) == [400]
    assert api.actions.told == []


def test_transfer_encoding_that_is_not_known_is_the_clients_mistake(api: Api) -> None:
    answer = api.send(b"POST /process_image HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n")
    assert answer.status == 400
    assert "Transfer-Encoding" in answer.error


def test_form_without_an_end_and_with_a_picture_costs_no_inference(api: Api) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + PICTURE
    response = api.http.post(
        "/process_image", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert response.status_code == 400
    assert api.engine.asked == []
