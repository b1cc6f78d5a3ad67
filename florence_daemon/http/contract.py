"""What server and application agree on: the form of every error, and how a hang-up is told."""

from __future__ import annotations

import json

# Where the application finds, in the WSGI environment, the function that takes what to do when the client hangs up.
ON_HANG_UP = "florence_daemon.on_hang_up"
# Below it OpenAI's clients ask, and read errors in their own form.
OPENAI_PATHS = "/v1/"
# What those clients call an error, where a status has a name of its own.
OPENAI_CODES = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 503: "unavailable", 504: "timeout"}


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
