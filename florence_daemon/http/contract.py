"""What server and application agree on: the form of every error, and how a hang-up is told."""

from __future__ import annotations

import json

# Where the application finds, in the WSGI environment, the function that takes what to do when the client hangs up.
ON_HANG_UP = "florence_daemon.on_hang_up"


def error_body(text: str) -> bytes:
    """An error as every client reads it: Python's look for `detail`, PowerShell's for `error`."""
    return json.dumps({"detail": text, "error": text}).encode("ascii")
