"""The engine process that asks another daemon: what it says of servers that are well, busy, gone or wrong."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence_daemon import errors
from florence_daemon.connection import Response, TimedOut, Unreachable
from florence_daemon.engine import loads, succession
from florence_daemon.engine import patience as patience_room
from florence_daemon.engine import remote as remote_room
from florence_daemon.engine.parcel import open_picture, resize
from florence_daemon.engine.patience import PAUSES_S, Patience
from florence_daemon.engine.preprocess import read_picture, to_pixels
from florence_daemon.engine.process import Engine
from florence_daemon.engine.protocol import (
    Alive,
    Ask,
    Done,
    EngineSettings,
    Loaded,
    LoadFailed,
    Reply,
    Request,
    Resized,
)
from florence_daemon.engine.remote import Remote
from florence_daemon.errors import CheckpointError, FlorenceError, OtherSize
from florence_daemon.peer import Busy, Peer
from florence_daemon.queue import Kind
from tests.conftest import FakeEngine, done, wait_for
from tests.http.api import Api, serving
from tests.pictures import jpeg, rotated_jpeg

ASKS = (Ask("<CAPTION>"), Ask("<ANALYZE>", num_beams=2, max_new_tokens=9), Ask("<OCR>", temperature=0.5, seed=1))
# As the server gets them: what an ask leaves open is what counts here.
SENT = (replace(ASKS[0], num_beams=3, max_new_tokens=50), ASKS[1], replace(ASKS[2], num_beams=1, max_new_tokens=50))
REGION = "<loc_1><loc_2><loc_3><loc_4>"
SETTINGS = EngineSettings("the server", num_beams=3, max_new_tokens=50)


@pytest.fixture
def api(engine: FakeEngine) -> Iterator[Api]:
    with serving(engine) as api:
        yield api


@pytest.fixture
def open_engine() -> Iterator[Callable[..., Engine]]:
    opened: list[Engine] = []

    def start(api: Api, **settings: object) -> Engine:
        url = f"http://127.0.0.1:{api.port}"
        opened.append(Engine(replace(SETTINGS, server=url, **settings), -1))  # type: ignore[arg-type]
        return opened[-1]

    yield start
    for engine in opened:
        engine.close(at_once=True)


def write(directory: Path, content: bytes) -> str:
    path = directory / "a.jpg"
    path.write_bytes(content)
    return str(path)


def test_picture_is_sent_as_it_is_with_the_settings_that_count_here(
    api: Api, open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    path = write(tmp_path, b"not read here")
    engine = open_engine(api)
    done = engine.submit(path, ASKS).result(60)
    assert api.engine.asked == [(b"not read here", SENT, False)]
    assert done.content == hashlib.blake2b(b"not read here", digest_size=16).digest()
    assert done.size_px == (10, 10)
    assert done.answers[0].tokens == 7
    assert engine.submit(b"bytes", ASKS, urgent=True).result(60).content is None
    assert api.engine.asked[1] == (b"bytes", SENT, True)
    assert engine.state().device == f"http://127.0.0.1:{api.port}"
    assert engine.in_flight == api.offer.at_once


@pytest.mark.parametrize("content", [jpeg(), rotated_jpeg()])
def test_resized_picture_is_what_the_model_would_have_seen(
    api: Api, open_engine: Callable[..., Engine], tmp_path: Path, content: bytes
) -> None:
    path = write(tmp_path, content)
    done = open_engine(api, sends_resized=True).submit(path, ASKS).result(60)
    [(sent, _, _)] = api.engine.asked
    assert isinstance(sent, Resized)
    here = read_picture(path, 64)
    there = open_picture(sent, 64)
    assert np.array_equal(to_pixels(here, 64), to_pixels(there, 64))
    assert there.size_px == here.size_px
    assert done.content == here.content


def test_picture_that_was_resized_for_another_model_is_refused() -> None:
    square, _ = resize(jpeg(), 64, fast=False)
    with pytest.raises(OtherSize, match="resized to 64×64 pixels, and the model sees 96×96"):
        open_picture(square, 96)


def test_model_that_sees_another_size_by_now_gets_the_whole_picture(
    api: Api, open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    content = jpeg()
    api.engine.on_submit = lambda: setattr(
        api.engine, "error", OtherSize("other") if isinstance(api.engine.asked[-1][0], Resized) else None
    )
    open_engine(api, sends_resized=True).submit(write(tmp_path, content), ASKS).result(60)
    assert [isinstance(sent, Resized) for sent, _, _ in api.engine.asked] == [True, False]
    assert api.engine.asked[1][0] == content


def test_picture_that_is_larger_than_the_server_takes_is_sent_resized(
    engine: FakeEngine, open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (400, 400, 3), np.uint8))
    file = io.BytesIO()
    noise.save(file, "PNG")
    with serving(engine, max_body_mb=0.2) as api:
        open_engine(api).submit(write(tmp_path, file.getvalue()), ASKS).result(60)
    assert len(file.getvalue()) > 0.2 * 2**20
    assert isinstance(engine.asked[0][0], Resized)


def test_server_loads_its_model_first_where_its_size_must_be_known(
    api: Api, open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    api.offer = replace(api.offer, side_px=None)
    future = open_engine(api, sends_resized=True).submit(write(tmp_path, jpeg()), ASKS)
    wait_for(lambda: "load" in api.residence.told)
    api.offer = replace(api.offer, side_px=32)
    future.result(60)
    sent = api.engine.asked[0][0]
    assert isinstance(sent, Resized)
    assert Image.open(io.BytesIO(sent.content)).size == (32, 32)


def test_server_that_was_started_anew_while_it_loaded_is_told_again(
    api: Api, open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    api.offer = replace(api.offer, side_px=None)
    future = open_engine(api, sends_resized=True).submit(write(tmp_path, jpeg()), ASKS)
    wait_for(lambda: api.residence.told.count("load") > 1, what="the daemon that knows nothing of it to be told")
    api.offer = replace(api.offer, side_px=32)
    future.result(60)


def test_server_that_may_not_be_told_to_load_gets_the_first_picture_as_it_is(
    api: Api, open_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise errors.PeerError("a proxy lets nobody do that")

    monkeypatch.setattr(api.residence, "load", refuse)
    api.offer = replace(api.offer, side_px=None)
    api.engine.on_submit = lambda: setattr(api, "offer", replace(api.offer, side_px=32))
    engine, path = open_engine(api, sends_resized=True), write(tmp_path, jpeg())
    for _ in range(2):
        engine.submit(path, ASKS).result(60)
    assert [isinstance(sent, Resized) for sent, _, _ in api.engine.asked] == [False, True]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errors.TruncatedPicture("the picture is truncated (JPEG): 3 bytes"), "{path} is truncated (JPEG): 3 bytes"),
        (errors.PictureError("the picture is not a picture"), "{path} is not a picture"),
        (errors.PromptError("no such prompt"), "no such prompt"),
        (errors.EngineError("out of memory"), "out of memory"),
        (errors.EngineCrashed("three times"), "three times"),
    ],
)
def test_error_of_a_picture_is_the_one_that_a_model_here_would_have(
    api: Api, open_engine: Callable[..., Engine], tmp_path: Path, error: FlorenceError, told: str
) -> None:
    api.engine.error = error
    engine = open_engine(api)
    path = write(tmp_path, b"x")
    with pytest.raises(FlorenceError) as caught:
        engine.submit(path, ASKS).result(60)
    assert type(caught.value) is type(error)
    assert str(caught.value) == told.format(path=path)
    api.engine.error = None
    engine.submit(path, ASKS).result(60)


def test_what_no_server_understands_is_the_questions_own_error(api: Api, open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(api)
    with pytest.raises(errors.PromptError, match=r"cannot be asked this: not what a Florence Daemon asks: prompt has"):
        engine.submit(b"x", (Ask("<OCR>" * 2000),)).result(60)
    with pytest.raises(errors.PromptError, match="asks are 300; at least 1, at most 256"):
        engine.submit(b"x", ASKS * 100).result(60)
    assert engine.state().name == "loaded"
    assert engine.submit(b"x", tuple(Ask("<REGION_TO_OCR>", " " * 3900 + REGION) for _ in range(32))).result(60).answers


@pytest.mark.parametrize(("status", "error"), [(408, errors.UnreadablePicture), (413, errors.PictureError)])
def test_picture_that_does_not_get_there_is_told_with_the_setting(status: int, error: type[FlorenceError]) -> None:
    peer = Peer("http://127.0.0.1:1")
    with pytest.raises(error, match=r"http://127\.0\.0\.1:1.*model\.send: resized") as caught:
        peer._checked(Response(status, json={"detail": "x" * 10**6}))
    assert type(caught.value) is error
    assert len(str(caught.value)) < 3000
    peer.close()


def test_file_that_cannot_be_read_is_the_files_fault(api: Api, open_engine: Callable[..., Engine]) -> None:
    with pytest.raises(errors.UnreadablePicture, match=r"^/nowhere/a\.jpg cannot be read"):
        open_engine(api).submit("/nowhere/a.jpg", ASKS).result(60)


def test_busy_server_is_asked_again(
    engine: FakeEngine, open_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.holds_answers = True
    with serving(engine, max_queued=2) as api:  # of which one is for those that do not wait for it
        remote = open_engine(api)
        first = remote.submit(b"1", ASKS)
        wait_for(lambda: len(engine.waiting) == 1)
        refused = threading.Event()
        monkeypatch.setattr(api.queue, "_refuse_when_full", told_of(api.queue._refuse_when_full, refused))
        second = remote.submit(b"2", ASKS)
        assert refused.wait(60)
        engine.holds_answers = False
        engine.waiting[0].set_result(done(SENT))
        first.result(60)
        second.result(60)


def test_server_that_is_busy_all_the_time_is_left_to_others(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience_room, "BUSY_S", 0.5)
    replies: list[Reply] = []
    with serving(engine) as api:
        remote = Remote(replace(SETTINGS, server=f"http://127.0.0.1:{api.port}"), replies.append)
        assert remote.open()
        run = threading.Thread(target=remote.run)
        run.start()
        remote.put(Request(1, b"x", ASKS), replies.append)
        wait_for(lambda: any(isinstance(reply, Done) for reply in replies))
        engine.error = errors.QueueFull("32 requests wait or run already")
        remote.put(Request(2, b"x", ASKS), replies.append)
        run.join(60)
        assert not run.is_alive()
    remote._peer.close()
    assert [reply.message for reply in replies if isinstance(reply, LoadFailed)] == [
        f"{remote._peer.server}: 32 requests wait or run already (for 0.5 s it has said nothing else)"
    ]


def test_picture_that_is_refused_again_and_again_travels_later_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = Patience("http://a", threading.Event())
    pauses: list[float] = []
    monkeypatch.setattr(patience, "pause", pauses.append)

    def ask() -> str:
        if len(pauses) < 5:
            raise Busy("there is no place", 2.0)
        return "answer"

    assert patience.ask(ask) == "answer"
    assert pauses == [2, 4, 8, 8, 8]


def test_connection_that_breaks_is_tried_again_a_few_times_and_one_that_timed_out_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patience = Patience("http://a", threading.Event())
    pauses: list[float] = []
    monkeypatch.setattr(patience, "pause", pauses.append)

    def fail(error: errors.ServerError) -> None:
        raise error

    with pytest.raises(Unreachable):
        patience.ask(lambda: fail(Unreachable("it broke")))
    assert pauses == list(PAUSES_S)
    with pytest.raises(TimedOut):
        patience.ask(lambda: fail(TimedOut("its answer did not come to an end")))
    assert pauses == list(PAUSES_S)


def told_of(put: Callable[[Kind], None], refused: threading.Event) -> Callable[[Kind], None]:
    def refuse(kind: Kind) -> None:
        try:
            put(kind)
        except errors.QueueFull:
            refused.set()
            raise

    return refuse


@pytest.mark.parametrize(
    "error", [errors.CheckpointError("there is no such model"), errors.Stopping("the daemon is stopping")]
)
def test_server_that_cannot_answer_anybody_is_left(
    api: Api, open_engine: Callable[..., Engine], error: FlorenceError
) -> None:
    api.engine.error = error
    engine = open_engine(api)
    with pytest.raises(CheckpointError, match=str(error)) as caught:
        engine.submit(b"x", ASKS).result(60)
    assert caught.value.retry_s is not None
    assert caught.value.retry_s <= loads.SERVER_RETRY_S
    api.engine.error = None
    wait_for(lambda: engine.state().refuses_for_s is None)
    engine.submit(b"x", ASKS).result(60)


def test_wrong_token_is_told_with_the_setting(engine: FakeEngine, open_engine: Callable[..., Engine]) -> None:
    with serving(engine, token="secret") as api:
        with pytest.raises(CheckpointError, match=r"it wants its token.*model\.server_token"):
            open_engine(api, server_token="other").submit(b"x", ASKS).result(60)
        open_engine(api, server_token="secret").submit(b"x", ASKS).result(60)


def test_server_that_has_another_model_by_now_is_begun_anew(api: Api, open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(api)
    engine.submit(b"x", ASKS).result(60)
    api.offer = replace(api.offer, served=replace(api.offer.served, name="other/model"))
    with pytest.raises(CheckpointError, match="its model has changed to other/model"):
        engine.submit(b"x", ASKS).result(60)
    wait_for(lambda: engine.state().refuses_for_s is None)
    engine.submit(b"x", ASKS).result(60)


def test_answer_of_a_server_that_may_not_answer_is_not_taken(api: Api) -> None:
    url = f"http://127.0.0.1:{api.port}"
    refusal: list[str | None] = [f"{url}: its model.name is 'other/model'"]
    engine = Engine(replace(SETTINGS, server=url), -1, admit=lambda loaded: refusal[0])
    with pytest.raises(CheckpointError, match=r"its model\.name is 'other/model'"):
        engine.submit(b"x", ASKS).result(60)
    refusal[0] = None
    wait_for(lambda: engine.state().refuses_for_s is None)
    engine.submit(b"x", ASKS).result(60)
    engine.close(at_once=True)


def test_program_that_is_no_florence_daemon_is_told_as_such(open_engine: Callable[..., Engine]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        engine = Engine(replace(SETTINGS, server=url), -1)
        with pytest.raises(CheckpointError, match="it is no Florence Daemon, or an older one: update it"):
            engine.submit(b"x", ASKS).result(60)
        engine.close(at_once=True)


def test_server_that_hangs_is_left_after_a_while(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_room, "GONE_S", 0.5)
    monkeypatch.setattr(remote_room, "LOOK_S", 0.1)
    monkeypatch.setattr(remote_room, "ALIVE_S", 0.1)
    engine.holds_answers = True
    replies: list[Reply] = []
    with serving(engine) as api:
        remote = Remote(replace(SETTINGS, server=f"http://127.0.0.1:{api.port}"), replies.append)
        assert remote.open()
        run = threading.Thread(target=remote.run)
        run.start()
        remote.put(Request(1, b"x", ASKS), replies.append)
        wait_for(lambda: Alive(in_flight=4) in replies, what="a sign of life while the server works")
        monkeypatch.setattr(remote._peer, "is_alive", lambda: False)
        run.join(60)
        assert not run.is_alive()
    remote._peer.close()
    assert isinstance(replies[0], Loaded)
    assert [reply.message for reply in replies if isinstance(reply, LoadFailed)] == [
        f"{remote._peer.server}: it shows no life any more"
    ]


def test_first_waits_for_a_server_are_short_and_none_is_longer_than_a_minute() -> None:
    now_s = 0.0
    waits = []
    known = loads.Loads(replace(SETTINGS, server="http://a"), lambda: now_s)
    for _ in range(9):
        known.failed("gone")
        waits.append((known.refuses_for_s(), known.retries_in_s()))
    assert [first for first, _ in waits] == [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert [longest for _, longest in waits] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert succession.Loads is loads.Loads
