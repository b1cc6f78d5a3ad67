"""The vision API: which model answers, which prompts it knows, and one picture's answers."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import falcon

from florence_daemon.engine.protocol import Done
from florence_daemon.http.contract import ON_HANG_UP
from florence_daemon.http.places import Places
from florence_daemon.http.question import Question, read_question
from florence_daemon.queue import Job, JobQueue
from florence_daemon.tasks import prompt_tokens


class ModelResource:
    """`GET /model`: the model's name, a bare JSON string."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the configured name; the model need not be loaded for it."""
        resp.media = self._name

    on_head = on_get


class PromptsResource:
    """`GET /prompts`: the prompts, a JSON array of strings with angle brackets."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with PromptGen's seven first."""
        resp.media = prompt_tokens()

    on_head = on_get


class ProcessImageResource:
    """`POST /process_image`: a picture and a prompt in, `{"result": …}` out."""

    def __init__(self, queue: JobQueue, places: Places, request_timeout_s: float) -> None:
        self._queue = queue
        self._places = places
        self._request_timeout_s = request_timeout_s

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Wait for the answer, however long the model takes to load, up to the configured time-out."""
        with self._places.take():
            question = read_question(req)
            resp.media = _media(question, self._ask(question, req))

    def _ask(self, question: Question, req: falcon.Request) -> Done:
        job = Job(question.kind, question.picture, question.asks)
        self._queue.put(job)
        req.env[ON_HANG_UP](lambda: self._queue.withdraw(job))
        try:
            return job.future.result(self._request_timeout_s)
        except concurrent.futures.TimeoutError:
            self._queue.withdraw(job)
            raise falcon.HTTPGatewayTimeout(
                description=f"no answer within {self._request_timeout_s:g} s (server.request_timeout_s)"
            ) from None
        except concurrent.futures.CancelledError:
            # Nobody reads this; waitress notices that, and sends nothing.
            raise falcon.HTTPError("499 Client Closed Request", description="the client hung up") from None


def _media(question: Question, done: Done) -> dict[str, Any]:
    if not question.is_list:
        return {"result": done.answers[0].result}
    return {"results": [{"prompt": answer.prompt, "result": answer.result} for answer in done.answers]}
