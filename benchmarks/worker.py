"""The process of a contender: takes an order and jobs from standard input, answers on what was standard output."""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import Any, Protocol

from benchmarks.contender import Answered, Job, Order, Ready, Unable, receive, send


class Model(Protocol):
    """A loaded model, ours or transformers'."""

    device: str
    precision: str

    def answer(self, job: Job) -> Answered:
        """Answer what is asked about each picture; `Answered.took_s` is filled in by who measures."""


def main() -> None:
    """Serve until standard input is closed."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not get among the replies
    try:
        model = open_model(receive(requests))
        send(replies, Ready(model.device, model.precision))
        while True:
            job = receive(requests)
            began_s = time.perf_counter()
            answered = model.answer(job)
            took_s = time.perf_counter() - began_s
            send(replies, Answered(took_s, answered.answers, answered.vision_s, answered.text_s))
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc()
        send(replies, Unable(f"{type(error).__name__}: {error}"))


def open_model(order: Order) -> Model:
    """Load what is ordered; each contender imports only what it needs itself."""
    if order.engine == "reference":
        from benchmarks.reference import Reference

        return Reference(order)
    return Ours(order)


class Ours:
    """This program's engine, as its own process holds it."""

    def __init__(self, order: Order) -> None:
        from florence_daemon.engine.backend import open_backend
        from florence_daemon.engine.protocol import EngineSettings

        settings = EngineSettings(
            order.checkpoint,
            device=order.device,
            precision=order.precision,
            engine=order.engine,
            max_new_tokens=order.new_tokens,
            max_batch=order.batch,
            offline=True,
            state_dir=order.state_dir,
        )
        self._backend: Any = open_backend(settings)  # a Batching, whatever is ordered but transformers
        self.device, self.precision = self._backend.device, self._backend.precision

    def answer(self, job: Job) -> Answered:
        """A backfill goes in as a whole; else each picture waits for the one before it."""
        from florence_daemon.engine.protocol import Ask

        asks = [Ask(prompt) for prompt in job.prompts]
        handed_in = [list(job.pictures)] if job.is_backfill else [[picture] for picture in job.pictures]
        found = [answered for pictures in handed_in for answered in self._backend.answer_all(pictures, asks)]
        answers = tuple(tuple(str(answer.result) for answer in of_one) for of_one, _ in found)
        stages = [stages for _, stages in found]
        return Answered(0.0, answers, sum(each.vision_s for each in stages), sum(each.text_s for each in stages))


if __name__ == "__main__":
    main()
