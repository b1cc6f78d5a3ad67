"""The real server on a real socket, with a stand-in for the engine behind the real queue and worker."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import httpx

from florence_daemon.activity import MINUTES
from florence_daemon.config import Config, ModelConfig, ServerConfig
from florence_daemon.current import Current
from florence_daemon.engine.member import EngineState, MemberState
from florence_daemon.engine.protocol import Served
from florence_daemon.errors import FlorenceError, SidecarChanged, UnknownPath
from florence_daemon.exchange import Offer
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.records import making_of
from florence_daemon.http.app import QUEUED_PATHS, create_app
from florence_daemon.http.chat_request import Fetch
from florence_daemon.http.health import Readiness
from florence_daemon.http.pictures import Caption, Shown
from florence_daemon.http.places import Places
from florence_daemon.http.server import HttpServer
from florence_daemon.queue import JobQueue, Kind
from florence_daemon.tally import EngineReading, FolderReading, Reading, Tally
from florence_daemon.worker import Worker
from tests.conftest import FakeEngine

PICTURE = b"\x89PNG the engine is a stand-in and reads nothing"
BASE64 = base64.b64encode(PICTURE).decode()
DATA_URI = f"data:image/png;base64,{BASE64}"
MODEL = {"name": "some/model", "state": "unloaded", "resident_mb": None, "gpu_mb": None, "idle_unload_s": 300.0}
ENGINE = dict.fromkeys(
    ("pid", "device", "load_s", "unloads_in_s", "error", "retries_in_s", "resident_mb", "gpu_mb")
) | {"name": "auto", "state": "unloaded", "running": 0, "answered": 0}


class FakeActions:
    """Knows one failed image, `/pictures/broken.jpg`; notes what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str | None]] = []

    def retry(self, path: str | None) -> int:
        return self._do("retry", path)

    def forget(self, path: str) -> int:
        return self._do("forget", path)

    def rescan(self, path: str | None) -> int:
        return self._do("rescan", path)

    def _do(self, what: str, path: str | None) -> int:
        if path is not None and not "/pictures/broken.jpg".startswith(path):
            raise UnknownPath(f"{path}: nothing is known of it")
        self.told.append((what, path))
        return 1


class FakeResidence:
    """Is loaded at once; notes what it was told."""

    def __init__(self) -> None:
        self.told: list[str | float] = []
        self.name = "unloaded"

    def load(self) -> None:
        self.told.append("load")
        self.name = "loaded"

    def unload(self) -> None:
        self.told.append("unload")
        self.name = "unloaded"

    def keep_alive(self, seconds: float) -> None:
        self.told.append(seconds)

    def state(self) -> EngineState:
        return EngineState(self.name)


class FakeGallery:
    """Knows one picture, `/pictures/a.jpg`, with one caption; keeps what it was told to write."""

    path = "/pictures/a.jpg"
    version = "0" * 32

    def __init__(self) -> None:
        self.text = "a caption"
        self.edits: list[tuple[str, str, str | None]] = []

    def latest(self, count: int) -> list[Shown]:
        return [self._shown(7.0)][:count]

    def picture(self, path: str) -> Shown:
        self._check(path)
        return self._shown()

    def thumbnail(self, path: str, version: str | None = None) -> tuple[str, bytes | None]:
        self._check(path)
        return "small", None if version == "small" else b"RIFF small WEBP"

    def edit(self, path: str, ext: str, text: str, version: str | None) -> Shown:
        self._check(path)
        if version not in (None, self.version):
            raise SidecarChanged("a.txt: was changed meanwhile by somebody else; nothing was written")
        self.edits.append((ext, text, version))
        return self._shown()

    def _shown(self, captioned_s: float | None = None) -> Shown:
        return Shown(self.path, "/pictures", (Caption(".txt", self.text, self.version, False),), "small", captioned_s)

    def _check(self, path: str) -> None:
        if path != self.path:
            raise UnknownPath(f"{path!r}: no captioned image of a watched folder")


class Api:
    """A server whose engine does what the test says."""

    def __init__(self, engine: FakeEngine, config: ServerConfig, fetch: Fetch | None = None) -> None:
        self.engine = engine
        self.residence = FakeResidence()
        self.tally = Tally()
        self.offer = Offer(Served("some/model"), 4, 64, int(config.max_body_mb * 2**20))
        self.refusal: FlorenceError | None = None  # why it cannot be asked by another daemon
        self.readiness = Readiness("ok")
        self.actions = FakeActions()
        self.queue = JobQueue(config.max_queued, on_withdrawn=lambda job: self.tally.ended(job, "withdrawn"))
        self.worker = Worker(self.queue, engine, Ledger(), partial(making_of, ModelConfig()), tally=self.tally)
        self.gallery = FakeGallery()
        places = Places(config.max_queued, QUEUED_PATHS)
        app = create_app(
            queue=self.queue,
            places=places,
            model_name=lambda: "some/model",
            request_timeout_s=config.request_timeout_s,
            status=self._status,
            overview=self._overview,
            readiness=lambda: self.readiness,
            reading=self._reading,
            actions=self.actions,
            residence=self.residence,
            offer=self._offer,
            fetch=fetch,
            gallery=self.gallery,
            allowed_origins=config.allowed_origins,
        )
        self.server = HttpServer(app, config, places)
        self.server.start()
        self.port = int(self.server.address.rpartition(":")[2])
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def _status(self) -> dict[str, Any]:
        engine = asdict(EngineState("unloaded"))
        del engine["gpu_bytes"], engine["retries_in_s"]
        return {
            "version": "1",
            "uptime_s": 1.0,
            "model": engine | MODEL | {"engines": [ENGINE]},
            "queue": self.queue.counts() | {"settling": 0, "captioned": 0, "failed": 0},
            "folders": [],
            "failures": [],
            "configuration": Current(Config()).status(),
        }

    def _offer(self) -> Offer:
        if self.refusal is not None:
            raise self.refusal
        return self.offer

    def _reading(self) -> Reading:
        counts = self.queue.counts()
        return Reading(
            version="1",
            model="some/model",
            counted=self.tally.read(),
            waiting={kind: counts[kind.name.lower()] for kind in Kind},
            running=counts["running"],
            engine=self.residence.state(),
            engines=(EngineReading(MemberState("cpu", self.residence.state(), 0, 0), None),),
            folders=(FolderReading("/pictures", "degraded", 2),),
        )

    def chat(self, *content: Any, **members: Any) -> httpx.Response:
        """Ask as OpenAI's clients do: texts and addresses of pictures, else `CAPTION` about the picture."""
        parts = [_part(each) for each in content or ("CAPTION", DATA_URI)]
        messages = [{"role": "user", "content": parts}]
        return self.http.post("/v1/chat/completions", json={"model": "some/model", "messages": messages} | members)

    def _overview(self) -> dict[str, Any]:
        status = self._status()
        del status["uptime_s"]
        return status | {"failures_total": 0, "activity": [0] * MINUTES}

    def process(self, **members: Any) -> httpx.Response:
        return self.http.post("/process_image", json={"image": BASE64, "prompt": "<CAPTION>"} | members)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 120)

    def send(self, raw: bytes) -> Answer:
        """Send bytes as they are, and read one answer to its end."""
        with self.connect() as client:
            client.sendall(raw)
            return read_answer(client)

    def close(self) -> None:
        self.worker.stop()
        self.queue.close()
        self.thread.join()
        self.http.close()
        self.server.stop()


@dataclass(frozen=True)
class Answer:
    """An answer as it came over the socket; status 0 when there was none."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        members = json.loads(self.body)
        assert set(members) == {"detail", "error"}
        assert members["detail"] == members["error"]
        return str(members["detail"])


def read_answer(client: socket.socket) -> Answer:
    """Read one answer, or nothing when the connection is closed without one."""
    with client.makefile("rb") as file, contextlib.suppress(ConnectionResetError):
        first = file.readline()
        if not first:
            return Answer(0, {}, b"")
        pairs = (line.decode("latin-1").split(":", 1) for line in iter(file.readline, b"\r\n") if line)
        headers = {name.lower(): value.strip() for name, value in pairs}
        return Answer(int(first.split()[1]), headers, file.read(int(headers["content-length"])))
    return Answer(0, {}, b"")


def _part(each: Any) -> Any:
    if not isinstance(each, str):
        return each
    is_address = each.startswith(("data:", "http"))
    return {"type": "image_url", "image_url": {"url": each}} if is_address else {"type": "text", "text": each}


def error_of(response: httpx.Response) -> str:
    body = response.json()
    assert set(body) == {"detail", "error"}
    assert body["detail"] == body["error"]
    return str(body["detail"])


@contextlib.contextmanager
def serving(engine: FakeEngine, *, fetch: Fetch | None = None, **settings: Any) -> Iterator[Api]:
    """An API with these settings of the server."""
    api = Api(engine, ServerConfig(port=0, **settings), fetch)
    try:
        yield api
    finally:
        for future in engine.waiting:
            future.cancel()
        api.close()
