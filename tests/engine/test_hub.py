"""The Hub: found in its cache without a network, downloaded from a stand-in, and explained where neither works."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

MODEL = "someone/Florence-2-tuned"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLOSED_PORT = "http://127.0.0.1:9"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"model": 1}',
    "merges.txt": b"#version: 0.2\n",
    "README.md": b"# no",
    "modeling_florence2.py": b"raise SystemExit('remote code')",
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"pickled",
    "onnx/model.safetensors": b"other",
    "logs.json/x.json": b"{}",
}
LOOK = """
import json, sys
from florence_daemon.engine import checkpoint
from florence_daemon.errors import CheckpointError
what, arguments = sys.argv[1], json.loads(sys.argv[2])
try:
    print(json.dumps({"found": str(getattr(checkpoint, what)(**arguments))}))
except CheckpointError as error:
    print(json.dumps({"said": str(error)}))
print(json.dumps([name for name in ("torch", "transformers", "huggingface_hub", "numpy") if name in sys.modules]))
"""


class Hub(ThreadingHTTPServer):
    """Speaks as much of the Hub's language as a download needs, and notes what it was asked."""

    files = FILES
    asked: list[str]


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, has_body: bool) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        files = self.server.files
        if path.startswith(f"/api/models/{MODEL}/tree/"):
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
            return self._send(json.dumps(tree).encode(), has_body)
        if re.fullmatch(rf"/api/models/{MODEL}(/revision/(main|v2|{COMMIT}))?", path):
            siblings = [{"rfilename": name} for name in files]
            return self._send(json.dumps({"id": MODEL, "sha": COMMIT, "siblings": siblings}).encode(), has_body)
        match = re.fullmatch(rf"/{MODEL}/resolve/{COMMIT}/(.+)", path)
        if match and match[1] in files:
            return self._send(files[match[1]], has_body)
        return self._send(b"{}", has_body, status=404, code="RepoNotFound")

    def _send(self, data: bytes, has_body: bool, status: int = 200, code: str = "") -> None:
        first = int(re.sub(r"\D", "", self.headers.get("Range", "").split("-")[0]) or 0)
        self.send_response(206 if first and status == 200 else status)
        self.send_header("Content-Length", str(len(data) - first))
        self.send_header("ETag", f'"{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if has_body:
            self.wfile.write(data[first:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), _Answers)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def look(home: Path, endpoint: str, what: str = "find", **arguments: object) -> tuple[dict[str, str], list[str], str]:
    """Ask in a process of its own, since the Hub's library reads its environment when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = kept | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", LOOK, what, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=True,
    )
    answer, imported = map(json.loads, ran.stdout.splitlines())
    return answer, imported, ran.stderr


def fill_cache(home: Path, names: tuple[str, ...], commit: str = COMMIT) -> Path:
    """Lay files out as the Hub's library keeps them."""
    repository = home / "hub" / f"models--{MODEL.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for directory in (snapshot, repository / "refs", repository / "blobs"):
        directory.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    for name in names:
        (repository / "blobs" / name).write_bytes(FILES[name])
        (snapshot / name).symlink_to(Path("..", "..", "blobs", name))
    return snapshot


def test_a_directory_is_found_without_heavy_imports(tmp_path: Path) -> None:
    answer, imported, _ = look(tmp_path, CLOSED_PORT, model=str(tmp_path))

    assert answer == {"found": str(tmp_path)}
    assert imported == []


def test_what_the_cache_holds_is_taken_without_a_network(tmp_path: Path) -> None:
    snapshot = fill_cache(tmp_path, ("config.json", "tokenizer.json", "model.safetensors"))

    for arguments in ({}, {"offline": True}, {"revision": COMMIT}):
        answer, imported, _ = look(tmp_path, CLOSED_PORT, model=MODEL, **arguments)
        assert answer == {"found": str(snapshot)}
    assert imported == ["huggingface_hub"]


@pytest.mark.parametrize("arguments", [{"offline": True}, {"offline": True, "revision": "v9"}, {}])
def test_what_is_nowhere_says_what_was_sought_where_and_what_to_do(
    arguments: dict[str, object], tmp_path: Path
) -> None:
    answer, _, _ = look(tmp_path, CLOSED_PORT, model=MODEL, **arguments)

    assert MODEL in answer["said"]
    assert str(tmp_path / "hub") in answer["said"]
    assert CLOSED_PORT in answer["said"]
    assert f"florence-daemon pull --model {MODEL}" in answer["said"]
    assert "revision" not in arguments or "at revision v9" in answer["said"]
    assert ("offline, nothing is downloaded" in answer["said"]) == ("offline" in arguments)


def test_an_interrupted_download_is_not_taken_for_a_model(tmp_path: Path) -> None:
    fill_cache(tmp_path, ("config.json", "tokenizer.json"))

    answer, _, _ = look(tmp_path, CLOSED_PORT, model=MODEL, offline=True)

    assert "was looked for in" in answer["said"]


def test_a_download_brings_what_is_needed_and_no_code(tmp_path: Path, hub: Hub) -> None:
    answer, _, shown = look(tmp_path, f"http://127.0.0.1:{hub.server_port}", model=MODEL)

    directory = Path(answer["found"])
    assert {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == {
        name: FILES[name] for name in ("config.json", "tokenizer.json", "merges.txt", "model.safetensors")
    }
    assert "%" in shown  # progress
    assert look(tmp_path, CLOSED_PORT, model=MODEL, offline=True)[0] == answer


def test_pickled_weights_come_only_where_there_are_no_others(tmp_path: Path, hub: Hub) -> None:
    hub.files = {name: data for name, data in FILES.items() if name != "model.safetensors"}

    answer, _, _ = look(tmp_path, f"http://127.0.0.1:{hub.server_port}", model=MODEL)

    names = {path.name for path in Path(answer["found"]).iterdir()}
    assert names == {"config.json", "tokenizer.json", "merges.txt", "pytorch_model.bin"}


def test_shards_come_with_their_index(tmp_path: Path, hub: Hub) -> None:
    index = json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    )
    shards = {"model.safetensors.index.json": index.encode()} | {
        f"model-0000{number}-of-00002.safetensors": b"shard" for number in (1, 2)
    }
    hub.files = {name: data for name, data in FILES.items() if name != "model.safetensors"} | shards

    answer, _, _ = look(tmp_path, f"http://127.0.0.1:{hub.server_port}", model=MODEL, revision="v2")

    names = {path.name for path in Path(answer["found"]).iterdir()}
    assert names == {"config.json", "tokenizer.json", "merges.txt", *shards}


def test_download_asks_the_hub_also_when_the_cache_is_whole(tmp_path: Path, hub: Hub) -> None:
    old = fill_cache(tmp_path, ("config.json", "tokenizer.json", "model.safetensors"), commit="f" * 40)

    answer, _, _ = look(tmp_path, f"http://127.0.0.1:{hub.server_port}", "download", model=MODEL)

    assert answer["found"] != str(old)
    assert Path(answer["found"]).name == COMMIT


def test_a_model_that_the_hub_does_not_have_is_said(tmp_path: Path, hub: Hub) -> None:
    answer, _, _ = look(tmp_path, f"http://127.0.0.1:{hub.server_port}", model="someone/nothing")

    assert "someone/nothing was looked for" in answer["said"]
    assert "RepositoryNotFoundError" in answer["said"]


def test_a_repository_without_weights_is_said(tmp_path: Path, hub: Hub) -> None:
    hub.files = {name: FILES[name] for name in ("config.json", "tokenizer.json", "README.md")}

    answer, _, _ = look(tmp_path, f"http://127.0.0.1:{hub.server_port}", model=MODEL)

    assert answer["said"] == f"{MODEL} on the Hub has not all files of a Florence-2, but config.json, tokenizer.json"
