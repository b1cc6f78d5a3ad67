"""The client side: whom it tells the token, how it waits for a busy server, and the commands that ask for something."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from florence_daemon import client as client_room
from florence_daemon.client import open_client
from florence_daemon.config import ServerConfig
from florence_daemon.engine.protocol import Ask
from florence_daemon.errors import EngineError, PictureError, PromptError, ServerError
from tests.conftest import FakeEngine, clean_environment, run_command
from tests.http.api import serving

TOKEN = "correct-horse-battery"


@pytest.fixture(autouse=True)
def no_settings_of_a_person(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in clean_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in (*client_room.TOKEN_VARIABLES, "FLORENCE_DAEMON_SERVER__TOKEN", "VISION_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", ["FLORENCE_DAEMON_TOKEN", "VISION_TOKEN"])
def test_token_of_the_environment_goes_to_the_server_that_is_named(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with serving(engine, token=TOKEN) as api:
        url = f"http://127.0.0.1:{api.port}"
        told = r"401.*server\.token.*FLORENCE_DAEMON_TOKEN or VISION_TOKEN"
        with closing(open_client(url)) as client, pytest.raises(ServerError, match=told):
            client.model()
        monkeypatch.setenv(variable, TOKEN)
        with closing(open_client(url)) as client:
            assert client.model() == "some/model"


def test_token_of_the_configuration_goes_to_its_own_server_alone(engine: FakeEngine) -> None:
    with serving(engine, token=TOKEN) as api:
        own_url = f"http://localhost:{api.port}"
        own = ServerConfig(port=api.port, token=TOKEN)
        with closing(open_client(own_url, own)) as client:
            assert client.model() == "some/model"
        other = ServerConfig(port=api.port + 1, token=TOKEN)
        with closing(open_client(own_url, other)) as client, pytest.raises(ServerError, match="401"):
            client.model()


@pytest.mark.parametrize("url", ["http://photos.example:54880", "http://10.0.0.7:54880", "http://127.0.0.1:8000"])
def test_token_of_the_configuration_is_never_told_to_strangers(url: str) -> None:
    with closing(open_client(url, ServerConfig(token=TOKEN))) as client:
        assert TOKEN not in str(client._connection._http.headers.raw)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_asked_without_the_proxy_of_the_environment(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with serving(engine) as api, closing(open_client(f"http://{host}:{api.port}")) as client:
        assert client.model() == "some/model"


def test_questions_that_are_asked_in_other_ways_go_apart_and_come_back_in_order(
    engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    asks = [Ask("<CAPTION>", None, 1), Ask("<OCR>"), Ask("<OD>", "cat"), Ask("<DETAILED_CAPTION>")]
    with serving(engine) as api, closing(open_client(f"http://127.0.0.1:{api.port}")) as client:
        answers = client.ask(str(tmp_path / "a.jpg"), asks)
    assert [answer.prompt for answer in answers] == [ask.prompt for ask in asks]
    assert [each for _, each, _ in engine.asked] == [(asks[0],), (asks[1], asks[3]), (asks[2],)]


class Busy(BaseHTTPRequestHandler):
    """Says that it is busy, in each of the ways given, and then answers."""

    says: list[tuple[int, str]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, retry_after = self.says.pop(0) if self.says else (200, "")
        body = json.dumps({"detail": "busy", "error": "busy", "result": "a cat"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def busy_server(*says: tuple[int, str]) -> Iterator[str]:
    handler = type("Handler", (Busy,), {"says": list(says)})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(client_room.time, "sleep", waited.append)
    return waited


def test_busy_server_is_asked_again_when_it_says(pauses: list[float], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=20), usegmt=True)
    with (
        busy_server((503, "2"), (429, "7"), (503, "9999"), (429, soon), (503, "0")) as url,
        closing(open_client(url)) as client,
    ):
        answers = client.ask(str(tmp_path / "a.jpg"), [Ask("<CAPTION>")])
    assert answers[0].result == "a cat"
    assert 1 < pauses.pop(3) <= 20  # less by what passed until then
    assert pauses == [2, 7, 30, 1]


def test_who_waits_for_a_busy_server_is_told_why_and_not_for_ever(pauses: list[float], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    told: list[str] = []
    with (
        busy_server(*[(503, "30")] * 30) as url,
        closing(open_client(url, on_wait=told.append)) as client,
        pytest.raises(ServerError, match="still busy after 10 minutes: busy"),
    ):
        client.ask(str(tmp_path / "a.jpg"), [Ask("<CAPTION>")])
    assert told == [f"{url} is waited for: busy"]
    assert pauses == [30] * 20


@pytest.mark.parametrize("said", [(503, ""), (503, "soon"), (500, "2")])
def test_server_that_does_not_say_when_is_not_asked_again(
    pauses: list[float], tmp_path: Path, said: tuple[int, str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    with busy_server(said) as url, closing(open_client(url)) as client, pytest.raises(ServerError, match=str(said[0])):
        client.ask(str(tmp_path / "a.jpg"), [Ask("<CAPTION>")])
    assert pauses == []


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (400, "Invalid image data: it is truncated", PictureError),
        (400, "Invalid prompt", PromptError),
        (413, "the request is larger than 32 MB", PictureError),
        (422, "Error processing image: the engine process ended 3 times", EngineError),
        (500, "Error processing image: out of memory", EngineError),
        (500, "something else", ServerError),
    ],
)
def test_failure_of_one_picture_is_told_from_one_of_the_server(status: int, text: str, error: type[Exception]) -> None:
    with closing(open_client("http://127.0.0.1:1")) as client, pytest.raises(error, match=text):
        client._checked(httpx.Response(status, json={"detail": text, "error": text}), dict)


@pytest.mark.parametrize("said", [b"<html>", b'"hello"', b"[]"])
def test_other_programs_answer_is_told_as_such(said: bytes) -> None:
    with (
        closing(open_client("http://127.0.0.1:1")) as client,
        pytest.raises(ServerError, match="not a Florence Daemon"),
    ):
        client._checked(httpx.Response(200, content=said), dict)


@pytest.mark.parametrize(
    "media",
    [
        {},
        {"result": None},
        {"result": ["a cat"]},
        {"result": "a \x1b[2Jcat"},
        {"result": "a \ud800"},
        {"results": 7},
        {"results": ["a cat"]},
        {"results": [{"result": "a cat"}] * 2},
        {"detail": "Error processing image", "error": "Error processing image"},
    ],
)
def test_answer_that_is_no_result_is_refused(media: dict[str, Any]) -> None:
    with pytest.raises(ServerError, match="is not one result per prompt") as caught:
        client_room._answers(media, [Ask("<CAPTION>")])
    assert str(caught.value).isprintable()


def test_commands_ask_the_daemon_for_something(engine: FakeEngine, tmp_path: Path) -> None:
    with serving(engine) as api:
        where = ("--server", f"http://127.0.0.1:{api.port}")
        retried = run_command("retry", *where, home=tmp_path)
        assert retried.stdout == "1 images are tried again\n"
        assert run_command("rescan", "/pictures", *where, home=tmp_path).stdout == "1 folders are scanned\n"
        assert run_command("forget", "/pictures", "--json", *where, home=tmp_path).stdout == '{"forgotten": 1}\n'
        unknown = run_command("retry", "elsewhere", *where, home=tmp_path)
        assert unknown.returncode == 1
        assert f"{tmp_path}/elsewhere: nothing is known of it" in unknown.stderr
        assert api.actions.told == [("retry", None), ("rescan", "/pictures"), ("forget", "/pictures")]


def test_network_without_a_token_is_a_configuration_error(tmp_path: Path) -> None:
    refused = run_command("run", "--host", "0.0.0.0", "--model", "demo", home=tmp_path)
    assert refused.returncode == 78
    assert "--host: '0.0.0.0' lets other machines in, and server.token is not set" in refused.stderr
