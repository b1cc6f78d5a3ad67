"""The page at `/`: its files, with what a browser may do with them, and what it asks for every few seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import falcon

from florence_daemon.http.contract import PAGE_FILES, to_json
from florence_daemon.tasks import TASKS

DIRECTORY = Path(__file__).parents[1] / "page"

# The page takes nothing from elsewhere and sends nothing there, runs no script but its own files, and is shown in no
# frame. `trusted-types 'none'` has the browser refuse whatever would turn text into HTML.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Asked for each time, answered 304 while it is the same: an update is there at once.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str
    etag: str


class PageResource:
    """`GET /` and `GET /page/NAME`."""

    def __init__(self) -> None:
        self._files = {name: _read(name, kind) for name, kind in PAGE_FILES.items()}

    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str = "index.html") -> None:
        """Answer with a file of the page. Raises: falcon.HTTPNotFound."""
        file = self._files.get(name)
        if file is None:
            raise falcon.HTTPNotFound(description=f"/page/{name:.80}: the page has no such file")
        resp.set_headers(HEADERS)
        if not is_known(req, resp, file.etag):
            resp.content_type, resp.data = file.kind, file.content

    on_head = on_get


class OverviewResource:
    """`GET /overview`: what the page shows of the daemon's work; a status cut to a size."""

    def __init__(self, overview: Callable[[], dict[str, Any]]) -> None:
        self._overview = overview

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer, or 304 when nothing has changed."""
        send(req, resp, self._overview())

    on_head = on_get


class TasksResource:
    """`GET /tasks`: what a picture can be asked, and what each task needs besides."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer, in the order of the prompts."""
        send(req, resp, [{"prompt": task.token, "needs": task.needs, "answer": task.answer} for task in TASKS])

    on_head = on_get


def send(req: falcon.Request, resp: falcon.Response, media: Any) -> None:
    """Answer with JSON, or 304 when the client has it already."""
    content = to_json(media)
    resp.set_header("Cache-Control", "private, no-cache")
    if not is_known(req, resp, _etag_of(content)):
        resp.content_type, resp.data = falcon.MEDIA_JSON, content


def is_known(req: falcon.Request, resp: falcon.Response, etag: str) -> bool:
    """Tell whether the client has what this tag stands for; then it is told 304, else the tag."""
    resp.etag = etag
    if not any(known == etag or known == "*" for known in req.if_none_match or ()):
        return False
    resp.status = falcon.HTTP_304
    return True


def _read(name: str, kind: str) -> _File:
    content = (DIRECTORY / name).read_bytes()
    return _File(content, kind, _etag_of(content))


def _etag_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()
