"""What server and application agree on: the form of JSON and of every error, how a hang-up is told, what is open."""

from __future__ import annotations

import json
from typing import Any

# Where the application finds, in the WSGI environment, the function that takes what to do when the client hangs up.
ON_HANG_UP = "florence_daemon.on_hang_up"
# Below it OpenAI's clients ask, and read errors in their own form.
OPENAI_PATHS = "/v1/"
# What those clients call an error, where a status has a name of its own.
OPENAI_CODES = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 503: "unavailable", 504: "timeout"}
# The page's own files, in the package's directory `page`, and their types. They tell nothing, and need no token: it is
# the page that asks a person for it.
PAGE_FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "main.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "work.js": "text/javascript; charset=utf-8",
    "gallery.js": "text/javascript; charset=utf-8",
    "editor.js": "text/javascript; charset=utf-8",
    "ask.js": "text/javascript; charset=utf-8",
    "places.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
PAGE_PATHS = frozenset({"/", *(f"/page/{name}" for name in PAGE_FILES)})


def error_body(text: str, path: str, status: int, param: str | None = None, code: str | None = None) -> bytes:
    """An error as the clients of a path read it.

    Python's look for `detail`, PowerShell's for `error`, OpenAI's for an object, in which `param` is the member that
    is wrong, and `code` a name for the error.
    """
    if not path.startswith(OPENAI_PATHS):
        return json.dumps({"detail": text, "error": text}).encode("ascii")
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": text, "type": kind, "param": param, "code": code or OPENAI_CODES.get(status)}
    return json.dumps({"error": error}).encode("ascii")


def to_json(media: Any) -> bytes:
    """JSON in UTF-8; what UTF-8 cannot hold (bytes of odd file names) stays an escape, which is JSON too."""
    return json.dumps(media, ensure_ascii=False).encode("utf-8", "backslashreplace")
