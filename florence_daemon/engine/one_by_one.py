"""The loop for a backend that takes one picture at a time: transformers', the reference."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from florence_daemon.engine.parcel import open_picture
from florence_daemon.engine.preprocess import Picture
from florence_daemon.engine.protocol import Answer, Ask, Begun, Done, HasRead, Request, Stages
from florence_daemon.engine.work import Reply, failure

AnswerPicture = Callable[[Picture, Sequence[Ask]], tuple[list[Answer], Stages]]


class OneByOne:
    """Answers requests one after the other, urgent ones first; `put` and `close` may be called from any thread."""

    in_flight = 2  # one that waits, so that the model need not

    def __init__(self, device: str, answer: AnswerPicture, side_px: int) -> None:
        """side_px: of the square to which `answer` resizes."""
        self.device = device
        self.side_px = side_px
        self._answer = answer
        self._inbox: queue.PriorityQueue[tuple[int, int, Request | None, Reply]] = queue.PriorityQueue()
        self._numbers = count()

    def put(self, request: Request, reply: Reply) -> None:
        """Take a request; `reply` gets Begun and HasRead, then the end, all from `run_once`."""
        self._inbox.put((0 if request.urgent else 1, next(self._numbers), request, reply))

    def close(self) -> None:
        """Make `run_once` return false."""
        self._inbox.put((-1, next(self._numbers), None, lambda reply: None))

    def run_once(self, timeout_s: float | None = 0.0) -> bool:
        """Answer one request. False when there was none within this time; None waits until there is, or `close`."""
        try:
            _, _, request, reply = self._inbox.get(timeout_s != 0, timeout_s)
        except queue.Empty:
            return False
        if request is None:
            return False
        reply(Begun(request.id))
        started_s = time.perf_counter()
        try:
            picture = open_picture(request.picture, self.side_px, whole=True)
            decode_s = time.perf_counter() - started_s
            reply(HasRead(request.id))
            answers, stages = self._answer(picture, request.asks)
        except Exception as error:  # Nothing that a picture does may end the loop.
            reply(failure(request.id, error))
            return True
        stages = replace(stages, decode_s=decode_s)
        reply(Done(request.id, tuple(answers), picture.size_px, stages, picture.content))
        return True
