"""Ask a Florence Daemon over HTTP. The only user of httpx."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from florence_daemon.engine.protocol import Answer, Ask
from florence_daemon.errors import PictureError, PromptError, ServerError

# Loading the model counts, so the read time-out is the server's business; this one is for a server that is gone.
READ_S = 900.0
CONNECT_S = 5.0
# How often a busy server is asked again before that is an error.
MAX_TRIES = 120


class Client:
    """One server, addressed by its URL: `http://127.0.0.1:54880`. Threads may share it."""

    def __init__(self, server: str) -> None:
        """Raises: ServerError when `server` is no URL."""
        self.server = server.rstrip("/") if "://" in server else f"http://{server}".rstrip("/")
        try:
            self._http = httpx.Client(base_url=self.server, timeout=httpx.Timeout(READ_S, connect=CONNECT_S))
        except (httpx.InvalidURL, ValueError) as error:
            raise ServerError(
                f"--server {server}: this is not an address like http://127.0.0.1:54880: {error}"
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def model(self) -> str:
        """The name of the model that answers there."""
        return str(self._get("/model"))

    def prompts(self) -> list[str]:
        """The prompts it knows."""
        return list(self._get("/prompts"))

    def status(self) -> dict[str, Any]:
        """What it is doing."""
        return dict(self._get("/status"))

    def ask(self, path: str, asks: Sequence[Ask], *, priority: str = "interactive") -> tuple[Answer, ...]:
        """Send a picture and get the answers in the order of `asks`, waiting while the server is busy.

        Every ask must have the same text and search settings: they share the request.
        Raises: PictureError, PromptError (the server's 400), ServerError (everything else).
        """
        content = _read(path)
        settings = {"text": asks[0].text, "num_beams": asks[0].num_beams, "max_new_tokens": asks[0].max_new_tokens}
        form: dict[str, Any] = {"prompt": [ask.prompt for ask in asks], "priority": priority}
        form |= {name: str(value) for name, value in settings.items() if value is not None}
        for _ in range(MAX_TRIES):
            with self._reachable():
                response = self._http.post("/process_image", data=form, files={"image": ("image", content)})
            if response.status_code != 503 or not response.headers.get("Retry-After", "").isdigit():
                return _answers(self._checked(response), asks)
            time.sleep(min(30.0, float(response.headers["Retry-After"])))
        raise ServerError(f"{self.server}: still busy after {MAX_TRIES} tries: {_error_text(response)}")

    def _get(self, path: str) -> Any:
        with self._reachable():
            response = self._http.get(path)
        return self._checked(response)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ServerError(
                f"{self.server}: no Florence Daemon answers there ({error or type(error).__name__}); "
                "start one with `florence-daemon run`, or name another with --server"
            ) from None

    def _checked(self, response: httpx.Response) -> Any:
        if response.status_code == 400:
            text = _error_text(response)
            raise PromptError(text) if text.startswith("Invalid prompt") else PictureError(text)
        if not response.is_success:
            raise ServerError(f"{self.server}: {response.status_code}: {_error_text(response)}")
        try:
            return response.json()
        except ValueError:
            raise ServerError(f"{self.server}: what answers there is not a Florence Daemon") from None


def _answers(media: dict[str, Any], asks: Sequence[Ask]) -> tuple[Answer, ...]:
    results = media.get("results") or [{"result": media.get("result")}]
    if len(results) != len(asks) or any(not isinstance(each.get("result"), str | dict) for each in results):
        raise ServerError(f"the server's answer is not one result per prompt: {media!r:.200}")
    return tuple(Answer(ask.prompt, each["result"]) for ask, each in zip(asks, results, strict=True))


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
