"""Sizes, times and places: what is too large, too slow or too much is refused early, and takes nothing from others."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from waitress.channel import HTTPChannel

from florence_daemon.config import ServerConfig
from florence_daemon.errors import PictureError
from florence_daemon.http.question import decode_base64
from tests.conftest import FakeEngine, Figure, done, wait_for
from tests.http.api import PICTURE, Api, error_of, read_answer, serving

HEAD = b"POST /process_image?prompt=CAPTION HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
MB = 1024 * 1024


def test_default_limit_is_32_mb() -> None:
    assert ServerConfig().max_body_mb == 32


def test_too_large_body_is_refused_by_its_length_alone(api: Api, figure: Figure) -> None:
    answer = api.send(HEAD + b"Content-Length: %d\r\n\r\n" % (MB + 1))
    assert answer.status == 413
    assert answer.error == "the request is larger than 1 MB (server.max_body_mb)"
    figure("413 after the header; 0 bytes of the body were sent")


def test_client_that_asks_first_is_told_not_to_send_a_body_that_is_too_large(api: Api) -> None:
    answer = api.send(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (2 * MB))
    assert answer.status == 413


def test_client_that_asks_first_may_send_what_fits(api: Api) -> None:
    with api.connect() as client:
        client.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(PICTURE))
        assert client.recv(100).startswith(b"HTTP/1.1 100 Continue")
        client.sendall(PICTURE)
        assert read_answer(client).status == 200


def test_chunked_body_is_refused_as_soon_as_it_is_too_large(api: Api) -> None:
    chunk = b"%x\r\n%s\r\n" % (65536, b"x" * 65536)
    with api.connect() as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(17):
            client.sendall(chunk)
        assert read_answer(client).status == 413


def test_body_of_exactly_the_limit_is_taken(api: Api) -> None:
    headers = {"Content-Type": "image/png"}
    assert api.http.post("/process_image?prompt=CAPTION", content=b"x" * MB, headers=headers).status_code == 200


def test_client_reads_the_413_though_it_is_still_sending(api: Api) -> None:
    response = api.http.post("/process_image", files={"image": b"x" * 20 * MB}, data={"prompt": "CAPTION"})
    assert response.status_code == 413


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_reads_the_413_though_it_is_still_sending(api: Api, tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    large.write_bytes(b"x" * 20 * MB)
    url = f"http://127.0.0.1:{api.port}/process_image"
    curl = ["curl", "-s", "-F", f"image=@{large}", "-F", "prompt=CAPTION", url]
    shown = subprocess.run(curl, capture_output=True, text=True, check=True, timeout=120).stdout
    assert json.loads(shown)["error"] == "the request is larger than 1 MB (server.max_body_mb)"


def test_body_in_crumbs_is_refused_before_it_costs_minutes(api: Api) -> None:
    with api.connect() as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000)
        answer = read_answer(client)
    assert (answer.status, answer.error) == (400, "the chunks are mostly not the body; send larger ones")


def test_head_that_is_too_large_is_refused(api: Api) -> None:
    answer = api.send(b"GET /model HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n")
    assert answer.status == 431
    assert "32768 bytes" in answer.error


@pytest.mark.parametrize("body", [b'{"x": [' + b"[]," * 20_000 + b"[]]}", b'{"a":' * 9_000 + b"1" + b"}" * 9_000])
def test_json_that_would_fill_the_memory_is_refused(api: Api, body: bytes) -> None:
    response = api.http.post("/process_image", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert error_of(response).startswith("Invalid JSON")


@pytest.mark.parametrize("text", ["data:" + "a" * 30_000, "data:image/png" + ";a=b" * 10_000, "data:;" + "a=" * 20_000])
def test_long_text_that_is_nearly_a_data_uri_is_refused_at_once(text: str) -> None:
    began_s = time.thread_time()  # of a processor: how busy the machine is does not count
    with pytest.raises(PictureError, match="base64"):
        decode_base64(text)
    assert time.thread_time() - began_s < 2


def test_text_that_no_model_could_read_is_refused(api: Api) -> None:
    response = api.process(prompt="OD", text="cat " * 2000)
    assert response.status_code == 422
    assert "4000 characters" in error_of(response)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /model HTTP/1.1\r\nHost: localh",
        HEAD + b"Content-Length: 100\r\n\r\nhalf",
        HEAD + b"Content-Length: 9\r\n\r\n",
    ],
)
def test_sender_that_stops_halfway_is_told_so_and_cut_off(engine: FakeEngine, sent: bytes) -> None:
    with serving(engine, receive_timeout_s=0.3) as api, api.connect() as client:
        client.sendall(sent)
        answer = read_answer(client)
        assert answer.status == 408
        assert answer.error == "the request did not arrive whole within 0.3 s (server.receive_timeout_s)"
        assert answer.headers["connection"] == "close"


def test_sender_that_drips_is_cut_off_just_as_well(engine: FakeEngine) -> None:
    with serving(engine, receive_timeout_s=1) as api, api.connect() as client:
        client.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        started_s = time.monotonic()
        client.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() < started_s + 60:
            client.sendall(b"x")
            try:
                answer = client.recv(100)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")


def test_connection_that_is_idle_between_two_requests_stays(engine: FakeEngine) -> None:
    with serving(engine, receive_timeout_s=0.1) as api, api.connect() as client:
        for pause_s in (1.2, 0):
            client.sendall(b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert read_answer(client).status == 200
            time.sleep(pause_s)


def test_long_answer_does_not_count_as_slow_sending(engine: FakeEngine) -> None:
    engine.holds_answers = True
    with serving(engine, receive_timeout_s=1.0) as api, ThreadPoolExecutor() as pool:
        asked = pool.submit(api.process)
        wait_for(lambda: engine.waiting)
        time.sleep(3.2)  # longer than that, and than the second between two looks
        engine.waiting[0].set_result(done(engine.asked[0][1]))
        assert asked.result(60).status_code == 200


def test_request_beyond_the_places_is_refused_before_its_body_is_sent(api: Api) -> None:
    api.engine.holds_answers = True
    with ThreadPoolExecutor() as pool:
        accepted = [pool.submit(api.process) for _ in range(3)]
        wait_for(lambda: len(api.engine.waiting) == 3)
        answer = api.send(HEAD + b"Content-Length: 1000000\r\n\r\n")
        assert answer.status == 503
        assert answer.headers["retry-after"] == "2"
        assert answer.error == "3 requests wait or run already (server.max_queued); try again in 2 s"
        assert api.http.get("/model").status_code == 200
        for future, (_, asks, _) in zip(api.engine.waiting, api.engine.asked, strict=True):
            future.set_result(done(asks))
        assert [each.result(60).status_code for each in accepted] == [200] * 3
    api.engine.holds_answers = False
    assert api.process().status_code == 200


def test_flood_is_answered_by_places_and_every_accepted_request_gets_its_answer(engine: FakeEngine) -> None:
    with serving(engine, max_queued=4) as api:

        def ask(number: int) -> int:
            with httpx.Client(base_url=f"http://127.0.0.1:{api.port}", timeout=60) as http:
                picture = b"x" * 100_000 + b"%d" % number
                form = {"prompt": "CAPTION"}
                return http.post("/process_image", files={"image": picture}, data=form).status_code

        with ThreadPoolExecutor(64) as pool:
            statuses = list(pool.map(ask, range(128)))
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) == len(engine.asked) > 0


@pytest.mark.parametrize("is_closed_hard", [False, True])
def test_client_that_hangs_up_before_its_turn_costs_no_inference(api: Api, is_closed_hard: bool) -> None:
    api.engine.holds_answers = True
    api.engine.in_flight = 1
    with ThreadPoolExecutor() as pool:
        first = pool.submit(api.process)
        wait_for(lambda: api.engine.waiting)
        client = api.connect()
        client.sendall(HEAD + b"Content-Length: 7\r\n\r\npicture")
        wait_for(lambda: api.queue.counts()["http"] == 1)
        if is_closed_hard:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets it
        client.close()
        wait_for(lambda: api.queue.counts()["http"] == 0, 60)
        api.engine.holds_answers = False
        api.engine.waiting[0].set_result(done(api.engine.asked[0][1]))
        assert first.result(60).status_code == 200
    assert api.process(prompt="OCR").status_code == 200
    assert [picture for picture, _, _ in api.engine.asked].count(b"picture") == 0


def test_hang_up_is_noticed_though_the_thread_of_the_request_before_is_slow_to_end(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = HTTPChannel.service

    def service_slowly(channel: HTTPChannel) -> None:
        service(channel)
        time.sleep(0.3)

    monkeypatch.setattr(HTTPChannel, "service", service_slowly)
    api.engine.in_flight = 0  # nobody's turn comes
    with api.connect() as client:
        client.sendall(b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(client).status == 200
        client.sendall(HEAD + b"Content-Length: 7\r\n\r\npicture")
        wait_for(lambda: api.queue.counts()["http"] == 1)
        time.sleep(0.4)
    wait_for(lambda: api.queue.counts()["http"] == 0, 60)


def test_places_of_clients_that_hung_up_are_free_again(api: Api) -> None:
    api.engine.holds_answers = True
    api.engine.in_flight = 1
    with ThreadPoolExecutor() as pool:
        first = pool.submit(api.process)
        wait_for(lambda: api.engine.waiting)
        for _ in range(20):
            with api.connect() as client:
                client.sendall(HEAD + b"Content-Length: 7\r\n\r\npicture")
                wait_for(lambda: api.queue.counts()["http"] == 1)
            wait_for(lambda: api.queue.counts()["http"] == 0, 60)
        api.engine.waiting[0].set_result(done(api.engine.asked[0][1]))
        assert first.result(60).status_code == 200
    assert len(api.engine.asked) == 1
