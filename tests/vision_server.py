"""A stand-in for a vision server, or for whatever answers in its place: says what it is told, notes what came."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Say:
    """An answer. wait_s: before it is given."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0


def say(status: int, value: Any, **headers: str) -> Say:
    """An answer in JSON. headers: `Retry_After="1"`"""
    return Say(status, json.dumps(value).encode(), {name.replace("_", "-"): text for name, text in headers.items()})


class VisionServer:
    """Gives `answers` in turn, the last one for ever. seen: (path, headers, JSON of the body) of every request."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[Say] = []
        self.seen: list[tuple[str, Mapping[str, str], Any]] = []
        self.on_request: Callable[[], None] = lambda: None


@contextmanager
def vision_server() -> Iterator[VisionServer]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.seen.append((self.path, dict(self.headers), json.loads(body) if body else None))
            server.on_request()
            answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            time.sleep(answer.wait_s)
            with contextlib.suppress(OSError):  # who waited too long has gone
                self.send_response(answer.status)
                for name, text in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(answer.body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = VisionServer(f"http://127.0.0.1:{http.server_address[1]}")
    thread = Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
