"""Ask a Florence Daemon over HTTP, as a command does for a person."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from florence_daemon import config_file
from florence_daemon.config import ServerConfig
from florence_daemon.config_checks import is_loopback
from florence_daemon.connection import Connection, Response, Unreachable, error_text, pause_s
from florence_daemon.engine.protocol import Answer, Ask
from florence_daemon.errors import ConfigError, EngineError, FlorenceError, PictureError, PromptError, ServerError
from florence_daemon.untrusted import UNFIT

# How long a busy server is waited for before that is an error.
PATIENCE_S = 600.0
T = TypeVar("T")
# The token that is sent, the first of these that is set; in the environment, since `ps` shows everybody a command line.
TOKEN_VARIABLES = (config_file.ENV_CLIENT, "VISION_TOKEN")


def open_client(
    server: str, config: ServerConfig | None = None, on_wait: Callable[[str], None] = lambda reason: None
) -> Client:
    """A client with the token for `server`. config: the section of the file in use; None looks for that file.

    on_wait: told why a busy server is waited for, once for each reason.
    Raises: ServerError when `server` is no URL.
    """
    return Client(server, token_for(server, config), on_wait)


def token_for(server: str, config: ServerConfig | None = None) -> str | None:
    """The token to send there: the environment's, or our own daemon's to itself."""
    given = next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), None)
    if given is not None:
        return given
    parts, settings = urlsplit(server if "://" in server else f"http://{server}"), config or _configured(os.environ)
    host = parts.hostname or ""
    # Another server must not learn this one's token, nor another program on this machine.
    is_own = parts.port == settings.port and (is_loopback(host) or host == settings.host.lower())
    return settings.required_token if is_own else None


def _configured(environ: Mapping[str, str]) -> ServerConfig:
    """The configuration of this machine's daemon, as far as it can be read from here."""
    try:
        return config_file.load(config_file.find_file(None, environ), environ).server
    except ConfigError:
        return ServerConfig()


class Client:
    """One server, addressed by its URL: `http://127.0.0.1:54880`. Threads may share it."""

    def __init__(
        self, server: str, token: str | None = None, on_wait: Callable[[str], None] = lambda reason: None
    ) -> None:
        """token: what the server asks for. on_wait: see `open_client`. Raises: ServerError when `server` is no URL."""
        self._connection = Connection(server, token)
        self._on_wait = on_wait
        self.server, self.url = self._connection.server, self._connection.url
        self.authorize, self.close = self._connection.authorize, self._connection.close

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
        waited_s, told = 0.0, None
        while True:
            response = self._send("POST", "/process_image", data=form, files={"image": ("image", content)})
            seconds = pause_s(response)
            if seconds is None:
                return _answers(self._checked(response, dict), asks)
            reason = error_text(response)
            if waited_s + seconds > PATIENCE_S:
                raise ServerError(f"{self.server}: still busy after {PATIENCE_S / 60:.0f} minutes: {reason}")
            if reason != told:
                self._on_wait(f"{self.server} is waited for: {reason}")
                told = reason
            time.sleep(seconds)
            waited_s += seconds

    def act(self, action: str, path: str | None) -> dict[str, int]:
        """Have the server `retry`, `forget` or `rescan` what is at `path`, or everything; return its counts."""
        # Bytes of a name that are not UTF-8 can be escaped in JSON, and cannot be sent otherwise.
        body = json.dumps({} if path is None else {"path": path})
        response = self._send("POST", f"/{action}", content=body, headers={"Content-Type": "application/json"})
        return self._checked(response, dict)

    def _get(self, path: str, kind: type[T]) -> T:
        return self._checked(self._send("GET", path), kind)

    def _send(self, method: str, path: str, **content: Any) -> Response:
        try:
            return self._connection.send(method, path, **content)
        except Unreachable as error:
            hint = "start one with `florence-daemon run`, or name another with --server"
            raise ServerError(f"{error}; {hint}") from None

    def _checked(self, response: Response, kind: type[T]) -> T:
        if not response.is_success:
            raise self._refused(response)
        try:
            media = response.json()
        except ValueError:
            media = None
        if not isinstance(media, kind):
            raise ServerError(f"{self.server}: what answers there is not a Florence Daemon")
        return media

    def _refused(self, response: Response) -> FlorenceError:
        """The error that an answer stands for: this picture's own, or one that every other would meet too."""
        text = error_text(response)
        if response.status_code in (400, 413):
            return PromptError(text) if text.startswith("Invalid prompt") else PictureError(text)
        if text.startswith("Error processing image"):
            return EngineError(text)
        if response.status_code == 401:
            text = f"it wants its token, server.token; set {' or '.join(TOKEN_VARIABLES)} in the environment"
        return ServerError(f"{self.server}: {response.status_code}: {text}")


def _answers(media: dict[str, Any], asks: Sequence[Ask]) -> tuple[Answer, ...]:
    results = media.get("results") or [media]
    results = results if isinstance(results, list) else []
    given = [each.get("result") if isinstance(each, dict) else None for each in results]
    # It is printed, and a terminal obeys control characters.
    if len(given) != len(asks) or any(not isinstance(each, dict) and not _is_text(each) for each in given):
        raise ServerError(f"the server's answer is not one result per prompt: {media!r:.200}")
    return tuple(
        Answer(ask.prompt, each["result"], is_cut=each.get("flaw") == "cut")
        for ask, each in zip(asks, results, strict=True)
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and UNFIT.search(value) is None


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"{path}: cannot be read: {error.strerror or error}") from None
