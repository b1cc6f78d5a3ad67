"""The vision API: which model answers, which prompts it knows, and one picture's answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon

from florence_daemon.engine.protocol import Answer, Done
from florence_daemon.http.asking import Asking
from florence_daemon.http.places import Places
from florence_daemon.http.question import Question, read_question
from florence_daemon.quality import flaw_of
from florence_daemon.tasks import prompt_tokens


class ModelResource:
    """`GET /model`: the model's name, a bare JSON string."""

    def __init__(self, name: Callable[[], str]) -> None:
        """name: asked each time, since the configuration may change."""
        self._name = name

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the configured name; the model need not be loaded for it."""
        resp.media = self._name()

    on_head = on_get


class PromptsResource:
    """`GET /prompts`: the prompts, a JSON array of strings with angle brackets."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with PromptGen's seven first."""
        resp.media = prompt_tokens()

    on_head = on_get


class ProcessImageResource:
    """`POST /process_image`: a picture and a prompt in, `{"result": …}` out."""

    def __init__(self, asking: Asking, places: Places) -> None:
        self._asking = asking
        self._places = places

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Wait for the answer and give it."""
        with self._places.take():
            asked = read_question(req)
            done = self._asking.ask(req, asked.kind, asked.picture, asked.asks, asked.keep_alive_s)
            resp.media = _media(asked, done)


def _media(question: Question, done: Done) -> dict[str, Any]:
    if not question.is_list:
        return _told(done.answers[0])
    return {"results": [{"prompt": answer.prompt} | _told(answer) for answer in done.answers]}


def _told(answer: Answer) -> dict[str, Any]:
    """An answer as it is, and what keeps it from being a caption, for who would write it into a file."""
    flaw = flaw_of(answer)
    return {"result": answer.result} | ({"flaw": flaw.kind} if flaw is not None else {})
