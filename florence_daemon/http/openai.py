"""What OpenAI's clients ask: `/v1/models` and `/v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import falcon

from florence_daemon.http.asking import Asking
from florence_daemon.http.chat_answer import completion, events
from florence_daemon.http.chat_request import Fetch, check_model, read_chat
from florence_daemon.http.places import Places
from florence_daemon.quality import flaw_of
from florence_daemon.queue import Kind

# Which task was asked, and why it was not one that the text named.
TASK_HEADER = "X-Florence-Task"
FREE_TEXT_HEADER = "X-Florence-Free-Text"
# What is wrong with an answer that no sidecar would get: empty, cut, loop, leak; of several choices, of the first such.
FLAW_HEADER = "X-Florence-Flaw"
HEADERS = (TASK_HEADER, FREE_TEXT_HEADER, FLAW_HEADER)


class ModelsResource:
    """`GET /v1/models` and `GET /v1/models/{id}`: the one model that there is."""

    def __init__(self, name: Callable[[], str], now: Callable[[], float] = time.time) -> None:
        """name: asked each time, since the configuration may change."""
        self._name = name
        self._created_s = int(now())

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with a list of one."""
        resp.media = {"object": "list", "data": [self._model()]}

    def on_get_one(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Answer with the model, if that is its name."""
        check_model(name, self._name())
        resp.media = self._model()

    def _model(self) -> dict[str, Any]:
        name = self._name()
        owner, slash, _ = name.partition("/")
        owned_by = owner if slash and owner else "florence-daemon"
        return {"id": name, "object": "model", "created": self._created_s, "owned_by": owned_by}

    on_head = on_get
    on_head_one = on_get_one


class ChatResource:
    """`POST /v1/chat/completions`: a picture and the text that chooses the task in, an assistant's message out."""

    def __init__(self, asking: Asking, places: Places, model_name: Callable[[], str], fetch: Fetch | None) -> None:
        """fetch: gets pictures by their https: addresses; None refuses those."""
        self._asking = asking
        self._places = places
        self._model_name = model_name
        self._fetch = fetch

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Wait for the answer. A stream begins when it is known too, so that every error has its status."""
        with self._places.take():
            model_name = self._model_name()
            asked = read_chat(req, model_name, self._fetch)
            done = self._asking.ask(req, Kind.HTTP, asked.picture, asked.asks, asked.keep_alive_s)
        answers = list(done.answers) if len(asked.asks) == asked.choices else [done.answers[0]] * asked.choices
        envelope: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model_name,
        }
        resp.set_header(TASK_HEADER, asked.asks[0].prompt)
        if asked.free_text is not None:
            resp.set_header(FREE_TEXT_HEADER, f"{asked.free_text}; GET /prompts lists the tasks")
        flaws = [flaw.kind for flaw in map(flaw_of, answers) if flaw is not None]
        if flaws:
            resp.set_header(FLAW_HEADER, flaws[0])
        if not asked.is_stream:
            resp.media = completion(envelope, answers)
            return
        resp.content_type = "text/event-stream; charset=utf-8"
        resp.cache_control = ["no-cache"]
        resp.data = b"".join(events(envelope, answers, with_usage=asked.wants_usage))
