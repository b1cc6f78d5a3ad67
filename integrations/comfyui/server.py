"""Ask a Florence Daemon over HTTP, with what Python itself has."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import os
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

# The server gives up by itself; this one is for a server that is gone. Loading the model counts.
TIMEOUT_S = 900.0
# How long a busy server is asked again, and the longest pause before each time.
PATIENCE_S = 600.0
MAX_PAUSE_S = 30.0
BUSY = (429, 503)
LARGEST_ANSWER_BYTES = 16 * 2**20
# Where an answer of places says what is there; OPEN_VOCABULARY_DETECTION tells boxes from outlines.
LABELS = ("labels", "bboxes_labels", "polygons_labels")
SERVER_VARIABLE = "VISION_HOST"
TOKEN_VARIABLES = ("FLORENCE_DAEMON_TOKEN", "VISION_TOKEN")
DEFAULT_SERVER = "http://127.0.0.1:54880"


class CaptionError(RuntimeError):
    """Why there is no caption, in words for the person at ComfyUI."""


@dataclass(frozen=True)
class Question:
    """What is asked about a picture. keep_alive: empty leaves it to the server."""

    png: bytes
    prompt: str
    text: str = ""
    keep_alive: str = ""

    def body(self) -> bytes:
        """It as the server reads it."""
        members = {"prompt": self.prompt, "text": self.text, "keep_alive": self.keep_alive}
        image = base64.b64encode(self.png).decode("ascii")
        return json.dumps({"image": image} | {name: value for name, value in members.items() if value}).encode("ascii")


@dataclass(frozen=True)
class Answer:
    """result: a text, or places. flaw: why it is not fit to be a caption, empty when it is."""

    result: str | dict[str, Any]
    flaw: str = ""


def default_server() -> str:
    """The server of this machine's environment."""
    return _with_scheme(os.environ.get(SERVER_VARIABLE, "").strip() or DEFAULT_SERVER)


class Server:
    """A server by its address. Threads may share it."""

    def __init__(self, address: str) -> None:
        """address: empty takes that of the environment. Raises: CaptionError, when it is none."""
        parts = _split(_with_scheme(address.strip() or default_server()))
        self.address = parts.geturl()
        self._token = _token() if _place(parts) == _place(_split(default_server())) else None
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if _is_this_machine(parts.hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))  # no proxy could reach it
        self._opener = urllib.request.build_opener(*handlers)

    def ask(self, question: Question, stopped: threading.Event) -> Answer:
        """Wait for the answer, and while the server is busy. stopped: set when nobody waits for it any more.

        Raises: CaptionError.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return _read(self._post(question))
            except urllib.error.HTTPError as error:
                with error:
                    told, pause_s = _told(error), _pause_s(error)
                if pause_s is None or time.monotonic() + pause_s > deadline_s or stopped.wait(pause_s):
                    raise CaptionError(self._refused(error.code, told)) from None

    def _post(self, question: Question) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(f"{self.address}/process_image", question.body(), headers)  # noqa: S310
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                body: bytes = response.read(LARGEST_ANSWER_BYTES)
                return body
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise CaptionError(
                f"no Florence Daemon answers at {self.address} ({reason}); start one with `florence-daemon run`"
            ) from None

    def _refused(self, status: int, told: str) -> str:
        if status == 401 and not self._token:
            told = (
                f"it wants a token. Set {TOKEN_VARIABLES[0]} in ComfyUI's environment, and {SERVER_VARIABLE} to "
                "this address: the token is sent to that server alone, since workflows come from anywhere"
            )
        return f"{self.address}: {status}: {told}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token is for the server that was named, and nobody else."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def _read(body: bytes) -> Answer:
    try:
        media = json.loads(body)
        result, flaw = media["result"], media.get("flaw", "")
    except (ValueError, KeyError, TypeError, AttributeError):
        result = flaw = None
    if not (isinstance(result, str) or _is_places(result)) or not isinstance(flaw, str):
        raise CaptionError(f"what answers is not a Florence Daemon: {body[:200]!r}")
    return Answer(result, flaw)


def _is_places(result: Any) -> bool:
    return isinstance(result, dict) and all(isinstance(result.get(name, []), list) for name in LABELS)


def _told(error: urllib.error.HTTPError) -> str:
    try:
        body = error.read(65536)
        return str(json.loads(body)["detail"])
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return error.reason or "no reason is given"


def _pause_s(error: urllib.error.HTTPError) -> float | None:
    """How long to wait before asking a busy server again; None when it does not want that."""
    wanted = error.headers.get("Retry-After", "")
    if error.code not in BUSY or not (wanted.isascii() and wanted.isdigit() and len(wanted) < 9):
        return None
    return min(MAX_PAUSE_S, max(1.0, float(wanted)))


def _token() -> str | None:
    """The token of the environment. Raises: CaptionError; Python's own error would show it."""
    name = next((name for name in TOKEN_VARIABLES if os.environ.get(name)), None)
    token = os.environ[name].strip() if name else None
    if token and not (token.isascii() and token.isprintable()):
        raise CaptionError(f"{name} holds what a header cannot carry; give letters, digits and any of ._~+/-")
    return token or None


def _split(address: str) -> SplitResult:
    """The parts of an address. Raises: CaptionError."""
    wrong = CaptionError(f"server: {address!r:.200} is not an address like {DEFAULT_SERVER}")
    try:
        parts = urlsplit(address)
        is_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # half a bracket, a port that is no number
        raise wrong from None
    # A name before the host would be shown with it, and where it went would be hard to see.
    if parts.scheme not in ("http", "https") or not is_host or "@" in address or parts.query or parts.fragment:
        raise wrong
    return parts


def _with_scheme(address: str) -> str:
    return (address if "://" in address else f"http://{address}").rstrip("/")


def _place(parts: SplitResult) -> tuple[str, str, int | None]:
    """What makes two addresses the same server."""
    return parts.scheme, "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or "", parts.port


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
