"""What a person can tell the daemon to do: try again, forget, look at a folder now."""

from __future__ import annotations

import os
from typing import Any, Protocol

import falcon

from florence_daemon.http.question import read_json


class Actions(Protocol):
    """What the daemon does when told. Paths are absolute; each raises UnknownPath for one that it knows nothing of."""

    def retry(self, path: str | None) -> int:
        """Try again the failed images at or below `path`, or all; return how many."""

    def forget(self, path: str) -> int:
        """Drop what is noted about the images at or below `path`; return how many."""

    def rescan(self, path: str | None) -> int:
        """Look now at the watched folders that `path` is in or holds, or at all; return how many."""


class RetryResource:
    """`POST /retry`: failed images are tried again."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with how many."""
        resp.media = {"retried": self._actions.retry(_read_path(req))}


class ForgetResource:
    """`POST /forget`: what the daemon knows of images is dropped; their files stay as they are."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with how many."""
        path = _read_path(req)
        if path is None:
            raise falcon.HTTPUnprocessableEntity(description="the member path is missing: an image or a folder")
        resp.media = {"forgotten": self._actions.forget(path)}


class RescanResource:
    """`POST /rescan`: folders are looked at now, without waiting for events or `rescan_s`."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with how many folders."""
        resp.media = {"rescanned": self._actions.rescan(_read_path(req))}


def read_members(req: falcon.Request, *known: str) -> dict[str, Any]:
    """The members of a JSON body; none when it is empty. Raises: falcon.HTTPError (400, 415, 422)."""
    if not req.content_length:
        return {}
    kind = (req.content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise falcon.HTTPUnsupportedMediaType(description=f"Content-Type {kind or 'is missing'}: application/json")
    members = read_json(req)
    unknown = next((name for name in members if name not in known), None)
    if unknown is not None:
        only = f"{known[0]} is the only one" if known else "there are none"
        raise falcon.HTTPUnprocessableEntity(description=f"{unknown!r:.80} is not a member; {only}")
    return members


def _read_path(req: falcon.Request) -> str | None:
    """The member `path`; None when the body is empty or holds none. Raises: falcon.HTTPError (400, 415, 422)."""
    path = read_members(req, "path").get("path")
    return None if path is None else _check(path)


def _check(path: Any) -> str:
    if not isinstance(path, str):
        raise falcon.HTTPUnprocessableEntity(description=f"path: {path!r:.80} is not a string")
    try:
        is_path = b"\0" not in os.fsencode(path) and os.path.isabs(path)
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise falcon.HTTPUnprocessableEntity(description=f"path: {path!r:.200} is not an absolute path")
    return os.path.normpath(path)
