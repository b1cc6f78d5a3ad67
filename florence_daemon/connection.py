"""The connections to a Florence Daemon elsewhere, which stay open between requests."""

from __future__ import annotations

import concurrent.futures
import json
import threading
import time
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from florence_daemon.config_checks import is_loopback
from florence_daemon.errors import ServerError
from florence_daemon.logs import printable

# Loading the model counts, so the read time-out is the server's business; this one is for a server that is gone.
READ_S = 900.0
CONNECT_S = 5.0
# A server closes a connection that was silent for 75 s; to be first leaves no request that nobody hears.
KEEP_ALIVE_S = 60.0
MAX_PAUSE_S = 30.0
BUSY = (429, 503)
# Far more than any answer has.
MAX_ANSWER_BYTES = 64 * 2**20
# What is told of an error's text, in characters; one in more bytes than these is not looked for.
MAX_ERROR = 2000
MAX_ERROR_BYTES = 2**20
# And of an answer that is no error of ours, such as a page of HTML.
MAX_SHOWN_BYTES = 200

Response = httpx.Response


class Unreachable(ServerError):
    """Nobody answers there, or not to the end."""


class TimedOut(Unreachable):
    """Nobody has answered for as long as was to be waited."""


class Connection:
    """One server, addressed by its URL: `http://127.0.0.1:54880`. Threads may share it."""

    def __init__(self, server: str, token: str | None = None, *, setting: str = "--server") -> None:
        """token: what the server asks for. setting: what the address was given as.

        Raises: ServerError when it is no address.
        """
        self.server = server.rstrip("/") if "://" in server else f"http://{server}".rstrip("/")
        try:
            self._http = httpx.Client(
                base_url=self.server,
                timeout=httpx.Timeout(READ_S, connect=CONNECT_S, pool=None),
                limits=httpx.Limits(
                    max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE_S
                ),
                mounts=_without_proxy(httpx.URL(self.server)),
                follow_redirects=False,  # the token is for this server alone
                headers={"Accept-Encoding": "identity"},  # a few bytes may be packed gigabytes
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ServerError(
                f"{setting} {server}: this is not an address like http://127.0.0.1:54880: {error}"
            ) from None
        self.authorize(token)

    @property
    def url(self) -> httpx.URL:
        """The server's address."""
        return self._http.base_url

    def authorize(self, token: str | None) -> None:
        """Send `token` from now on."""
        if token is not None:
            self._http.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, method: str, path: str, *, read_s: float = READ_S, **content: Any) -> Response:
        """Send a request and wait for the whole answer. read_s: how long that may take.

        Raises: Unreachable when there is none; ServerError when it is too large.
        """
        # httpx counts each wait alone: who sends a byte now and then would keep us for ever.
        answered: Future[Response] = Future()
        arguments = (answered, method, path, read_s, content)
        threading.Thread(target=self._send, args=arguments, name="send", daemon=True).start()
        try:
            return answered.result(read_s + CONNECT_S)
        except concurrent.futures.TimeoutError:
            raise TimedOut(f"{self.server}: its answer did not come to an end within {read_s:g} s") from None

    def _send(self, answered: Future[Response], method: str, path: str, read_s: float, content: dict[str, Any]) -> None:
        """Send a request and take its answer; a thread's whole job."""
        try:
            answered.set_result(self._exchange(method, path, read_s, content))
        except BaseException as error:
            answered.set_exception(error)

    def _exchange(self, method: str, path: str, read_s: float, content: dict[str, Any]) -> Response:
        timeout = httpx.Timeout(read_s, connect=min(read_s, CONNECT_S), pool=None)
        try:
            with self._http.stream(method, path, timeout=timeout, **content) as response:
                body = bytearray()
                for piece in response.iter_raw():
                    body += piece
                    if len(body) > MAX_ANSWER_BYTES:
                        raise ServerError(f"{self.server}: the answer is larger than a Florence Daemon's ever is")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            kind = TimedOut if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout) else Unreachable
            raise kind(f"{self.server}: no Florence Daemon answers there ({error or type(error).__name__})") from None
        # What is packed all the same stays so: nobody asked for that.
        headers = [pair for pair in response.headers.multi_items() if pair[0].lower() != "content-encoding"]
        return Response(response.status_code, headers=headers, content=bytes(body))


def pause_s(response: Response) -> float | None:
    """How long to wait before asking a busy server again; None when it is not busy, or does not want to be asked."""
    wanted = response.headers.get("Retry-After", "")
    if response.status_code not in BUSY or not wanted:
        return None
    try:
        seconds = float(wanted) if wanted.isdigit() else parsedate_to_datetime(wanted).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(MAX_PAUSE_S, max(1.0, seconds))


def error_text(response: Response) -> str:
    """What a server says is wrong, fit to be shown."""
    try:
        text = json.loads(response.content[:MAX_ERROR_BYTES])["detail"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        text = response.content[:MAX_SHOWN_BYTES].decode("utf-8", "replace") or response.reason_phrase
    return printable(text[:MAX_ERROR])


def _without_proxy(url: httpx.URL) -> dict[str, None]:
    """Ask this machine itself, whatever HTTP_PROXY says: no proxy could reach it, and each would be told the token."""
    return {f"all://{url.netloc.decode('ascii')}": None} if is_loopback(url.host) else {}
