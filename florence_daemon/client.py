"""Ask a Florence Daemon over HTTP. The only user of httpx."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx

from florence_daemon import config_file
from florence_daemon.config import ServerConfig
from florence_daemon.config_checks import is_loopback
from florence_daemon.engine.protocol import Answer, Ask
from florence_daemon.errors import ConfigError, EngineError, FlorenceError, PictureError, PromptError, ServerError

# Loading the model counts, so the read time-out is the server's business; this one is for a server that is gone.
READ_S = 900.0
CONNECT_S = 5.0
# How often a busy server is asked again before that is an error, and the longest pause before each time.
MAX_TRIES = 120
MAX_PAUSE_S = 30.0
BUSY = (429, 503)
T = TypeVar("T")
# The token that is sent, the first of these that is set; in the environment, since `ps` shows everybody a command line.
TOKEN_VARIABLES = (config_file.ENV_CLIENT, "VISION_TOKEN")


def open_client(server: str, config: ServerConfig | None = None) -> Client:
    """A client with the token for `server`. config: the section of the file in use; None looks for that file.

    Raises: ServerError when `server` is no URL.
    """
    token = next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), None)
    client = Client(server, token)
    if token is None:
        settings = config or _configured(os.environ)
        # Another server must not learn this one's token, nor another program on this machine.
        is_own = client.url.port == settings.port and (is_loopback(client.url.host) or client.url.host == settings.host)
        client.authorize(settings.required_token if is_own else None)
    return client


def _configured(environ: Mapping[str, str]) -> ServerConfig:
    """The configuration of this machine's daemon, as far as it can be read from here."""
    try:
        return config_file.load(config_file.find_file(None, environ), environ).server
    except ConfigError:
        return ServerConfig()


class Client:
    """One server, addressed by its URL: `http://127.0.0.1:54880`. Threads may share it."""

    def __init__(self, server: str, token: str | None = None) -> None:
        """token: what the server asks for. Raises: ServerError when `server` is no URL."""
        self.server = server.rstrip("/") if "://" in server else f"http://{server}".rstrip("/")
        try:
            self._http = httpx.Client(
                base_url=self.server,
                timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
                mounts=_without_proxy(httpx.URL(self.server)),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ServerError(
                f"--server {server}: this is not an address like http://127.0.0.1:54880: {error}"
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

    def model(self) -> str:
        """The name of the model that answers there."""
        return self._get("/model", str)

    def prompts(self) -> list[str]:
        """The prompts it knows."""
        return self._get("/prompts", list)

    def status(self) -> dict[str, Any]:
        """What it is doing."""
        return self._get("/status", dict)

    def ask(self, path: str, asks: Sequence[Ask], *, priority: str = "interactive") -> tuple[Answer, ...]:
        """Send a picture and get the answers in the order of `asks`, waiting while the server is busy.

        Those with the same text and search settings share a request.
        Raises: PictureError, PromptError, EngineError (this picture alone failed), ServerError (everything else).
        """
        content = _read(path)
        groups: dict[tuple[object, ...], list[Ask]] = {}
        for ask in asks:
            groups.setdefault((ask.text, ask.num_beams, ask.max_new_tokens), []).append(ask)
        answers = {
            ask: answer
            for group in groups.values()
            for ask, answer in zip(group, self._ask_alike(content, group, priority), strict=True)
        }
        return tuple(answers[ask] for ask in asks)

    def _ask_alike(self, content: bytes, asks: Sequence[Ask], priority: str) -> tuple[Answer, ...]:
        """Ask what shares text and search settings."""
        settings = {"text": asks[0].text, "num_beams": asks[0].num_beams, "max_new_tokens": asks[0].max_new_tokens}
        form: dict[str, Any] = {"prompt": [ask.prompt for ask in asks], "priority": priority}
        form |= {name: str(value) for name, value in settings.items() if value is not None}
        for _ in range(MAX_TRIES):
            with self._reachable():
                response = self._http.post("/process_image", data=form, files={"image": ("image", content)})
            pause_s = _pause_s(response)
            if pause_s is None:
                return _answers(self._checked(response, dict), asks)
            time.sleep(pause_s)
        raise ServerError(f"{self.server}: still busy after {MAX_TRIES} tries: {_error_text(response)}")

    def act(self, action: str, path: str | None) -> dict[str, int]:
        """Have the server `retry`, `forget` or `rescan` what is at `path`, or everything; return its counts."""
        # Bytes of a name that are not UTF-8 can be escaped in JSON, and cannot be sent otherwise.
        body = json.dumps({} if path is None else {"path": path})
        with self._reachable():
            response = self._http.post(f"/{action}", content=body, headers={"Content-Type": "application/json"})
        return self._checked(response, dict)

    def _get(self, path: str, kind: type[T]) -> T:
        with self._reachable():
            response = self._http.get(path)
        return self._checked(response, kind)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ServerError(
                f"{self.server}: no Florence Daemon answers there ({error or type(error).__name__}); "
                "start one with `florence-daemon run`, or name another with --server"
            ) from None

    def _checked(self, response: httpx.Response, kind: type[T]) -> T:
        if not response.is_success:
            raise self._refused(response)
        try:
            media = response.json()
        except ValueError:
            media = None
        if not isinstance(media, kind):
            raise ServerError(f"{self.server}: what answers there is not a Florence Daemon")
        return media

    def _refused(self, response: httpx.Response) -> FlorenceError:
        """The error that an answer stands for: this picture's own, or one that every other would meet too."""
        text = _error_text(response)
        if response.status_code in (400, 413):
            return PromptError(text) if text.startswith("Invalid prompt") else PictureError(text)
        if text.startswith("Error processing image"):
            return EngineError(text)
        if response.status_code == 401:
            text = f"it wants its token, server.token; set {' or '.join(TOKEN_VARIABLES)} in the environment"
        return ServerError(f"{self.server}: {response.status_code}: {text}")


def _without_proxy(url: httpx.URL) -> dict[str, None]:
    """Ask this machine itself, whatever HTTP_PROXY says: no proxy could reach it, and each would be told the token."""
    return {f"all://{url.netloc.decode('ascii')}": None} if is_loopback(url.host) else {}


def _pause_s(response: httpx.Response) -> float | None:
    """How long to wait before asking a busy server again; None when it is not busy, or does not want to be asked."""
    wanted = response.headers.get("Retry-After", "")
    if response.status_code not in BUSY or not wanted:
        return None
    try:
        pause_s = float(wanted) if wanted.isdigit() else parsedate_to_datetime(wanted).timestamp() - time.time()
    except ValueError:
        return None
    return min(MAX_PAUSE_S, max(1.0, pause_s))


def _answers(media: dict[str, Any], asks: Sequence[Ask]) -> tuple[Answer, ...]:
    results = media.get("results") or [media]
    if len(results) != len(asks) or any(not isinstance(each.get("result"), str | dict) for each in results):
        raise ServerError(f"the server's answer is not one result per prompt: {media!r:.200}")
    return tuple(
        Answer(ask.prompt, each["result"], is_cut=each.get("flaw") == "cut")
        for ask, each in zip(asks, results, strict=True)
    )


def _error_text(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"{path}: cannot be read: {error.strerror or error}") from None
