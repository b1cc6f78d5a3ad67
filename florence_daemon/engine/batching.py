"""Batching while decoding: pictures are seen together, and questions join and leave the decoder between its steps."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np

from florence_daemon.engine.checkpoint import Checkpoint
from florence_daemon.engine.decoder import Backend
from florence_daemon.engine.parcel import open_picture
from florence_daemon.engine.preprocess import Picture, to_pixels
from florence_daemon.engine.protocol import (
    Answer,
    Ask,
    Begun,
    Done,
    EngineSettings,
    Failed,
    HasRead,
    Progress,
    Request,
    Stages,
    error_of,
)
from florence_daemon.engine.reading import ReadAhead
from florence_daemon.engine.slots import Slots
from florence_daemon.engine.work import Question, Reply, Work, is_device_lost, is_out_of_memory, new_question
from florence_daemon.errors import PromptError

log = logging.getLogger(__name__)

# Pixels that are held ahead of the model.
READ_AHEAD_BYTES = 256 * 2**20


class Batching:
    """Answers requests with a backend, many at once. `put` may be called from any thread, all else from one.

    What is urgent goes first everywhere: it is read by the next free thread, seen next, and decoded at once, even
    beyond `batch` (unless that is one); while it is there, nothing is begun that would hold it up. No answer depends on
    what else is there.
    """

    def __init__(
        self,
        backend: Backend,
        checkpoint: Checkpoint,
        settings: EngineSettings,
        batch: int,
        *,
        pool: Executor | None = None,
    ) -> None:
        """batch: how many questions are decoded side by side. pool: runs the readers, instead of threads of its own."""
        self.backend = backend
        self.device = backend.device
        self.precision = backend.precision
        self.batch = batch
        self._checkpoint = checkpoint
        self._settings = settings
        readers = 2 if backend.device == "cpu" else min(8, os.cpu_count() or 1)
        pixel_bytes = 3 * checkpoint.layout.image_side_px**2 * 4
        self.read_ahead = max(1, min(2 * backend.picture_batch + 2, READ_AHEAD_BYTES // pixel_bytes))
        self._ahead = ReadAhead(
            self._read, self.read_ahead, readers, pool or ThreadPoolExecutor(readers + 1, thread_name_prefix="read")
        )
        self._seeing: list[Work] = []
        self._seen: list[Question] = []  # wait for a slot
        self._slots = Slots(backend)
        self._tried_alone: set[Work] = set()

    @property
    def side_px(self) -> int:
        """The side of the square that the model sees."""
        return self._checkpoint.layout.image_side_px

    @property
    def in_flight(self) -> int:
        """Requests that keep it busy: as many as are decoded, seen and read ahead."""
        return self.batch + self.read_ahead

    def put(self, request: Request, reply: Reply) -> None:
        """Take a request. `reply` gets Begun and HasRead from the thread that reads it, its end from `run_once`."""
        self._ahead.put(Work(request.id, request.picture, request.asks, reply, request.urgent))

    def close(self) -> None:
        """Make `run_once` return false, now and for ever; what is not answered is given up."""
        self._ahead.close()

    def answer(self, picture: Picture, asks: Sequence[Ask]) -> tuple[list[Answer], Stages]:
        """Answer all asks about one picture; see `answer_all`."""
        return self.answer_all([picture], asks)[0]

    def answer_all(
        self, pictures: Iterable[str | bytes | Picture], asks: Sequence[Ask]
    ) -> list[tuple[list[Answer], Stages]]:
        """Answer the same asks about each picture, in their order; for tools, while no other thread runs the loop.

        Raises:
            FlorenceError: a picture or an ask cannot be answered.
        """
        ends: dict[int, Done | Failed] = {}

        def note(reply: Progress) -> None:
            if isinstance(reply, Done | Failed):
                ends[reply.id] = reply

        count = 0
        for picture in pictures:
            self._ahead.put(Work(count, picture, tuple(asks), note))
            count += 1
        while len(ends) < count:
            self.run_once(None)
        return [_answers_of(ends[number]) for number in range(count)]

    def run_once(self, timeout_s: float | None = 0.0) -> bool:
        """See the pictures that are due, let questions in, decode a step, and answer what is done.

        False when there was nothing to do within this time; None waits until there is, or `close` is called.

        Raises:
            RuntimeError: the GPU is lost to this process.
        """
        if self._ahead.is_closed or (self._is_idle and not self._ahead.wait_for(self._is_due, timeout_s)):
            return False
        for work, reason in self._ahead.take_refused():
            work.fail(reason)
        done: list[tuple[Question, list[int]]] = []
        failed: list[tuple[Question, Exception]] = []
        try:
            self._see()
            self._let_in()
            done, failed = self._decode()
        except Exception as error:  # Whatever the model runs into, each request ends and the loop goes on.
            if is_device_lost(error):  # Only a new process helps, which the daemon starts when this one dies.
                raise
            self._retreat(error)
        for question, ids in done:
            self._finish(question, ids)
        for question, reason in failed:
            self._give_up(question.work, reason)
        return True

    def _read(self, work: Work) -> None:
        """Read and resize a picture, in a reader's thread."""
        work.reply(Begun(work.id))
        if not work.asks:
            raise PromptError("Nothing is asked about this picture; give a prompt")
        work.questions = [new_question(work, ask, self._checkpoint, self._settings) for ask in work.asks]
        started_s = time.perf_counter()
        side_px, fast = self._checkpoint.layout.image_side_px, self._settings.fast_decode
        source, work.source = work.source, ""
        picture = source if isinstance(source, Picture) else open_picture(source, side_px, fast)
        work.pixels, work.size_px, work.content = to_pixels(picture, side_px), picture.size_px, picture.content
        work.decode_s = time.perf_counter() - started_s
        work.reply(HasRead(work.id))

    @property
    def _is_idle(self) -> bool:
        return not self._slots and not self._seen

    @property
    def _limit(self) -> int:
        """Questions that may be decoded now: one, while it is looked for which of some made the model fail."""
        return 1 if self._tried_alone else self.batch

    def _is_due(self) -> bool:
        return any(self._due())

    def _due(self) -> tuple[int, int]:
        """How many pictures are to be seen now: urgent ones, and others.

        Others wait while anything urgent is there, which on a CPU they would stall by a second; and until as many slots
        are free as pictures are seen best at once.
        """
        best = min(self.backend.picture_batch, self._limit)
        may_see = self._is_idle or self._limit > 1
        urgent = min(best, self._ahead.count_read(urgent=True)) if may_see else 0
        if urgent or self._holds_urgent():
            return urgent, 0
        free = self._limit - len(self._slots) - len(self._seen)
        read = self._ahead.count_read(urgent=False)
        wanted = min(best, self._ahead.count(urgent=False))
        if self._is_idle:
            return 0, min(read, wanted)
        return 0, wanted if min(free, read) >= wanted else 0

    def _holds_urgent(self) -> bool:
        questions = (*self._slots.questions, *self._seen)
        return any(question.work.is_urgent for question in questions) or self._ahead.count(urgent=True) > 0

    def _see(self) -> None:
        urgent, others = self._due()
        self._seeing = self._ahead.take(urgent, urgent=True) + self._ahead.take(others, urgent=False)
        if not self._seeing:
            return
        started_s = time.perf_counter()
        features = self.backend.see(np.stack([work.pixels for work in self._seeing if work.pixels is not None]))
        seconds = (time.perf_counter() - started_s) / len(self._seeing)
        for work, each in zip(self._seeing, features, strict=True):
            work.features, work.pixels, work.vision_s = each, None, seconds
            self._seen += work.questions
        self._seeing = []

    def _let_in(self) -> None:
        for question in sorted(self._seen, key=lambda question: not question.work.is_urgent):
            if not self._has_place_for(question):
                continue
            self._seen.remove(question)
            started_s = time.perf_counter()
            self._slots.join(question)
            question.work.text_s += time.perf_counter() - started_s

    def _has_place_for(self, question: Question) -> bool:
        """Urgent questions have a batch of places of their own; others do not join, which takes time, beside them."""
        urgent = sum(each.work.is_urgent for each in self._slots.questions)
        if question.work.is_urgent and self._limit > 1:
            return urgent < self._limit
        return len(self._slots) < self._limit and not (urgent and not question.work.is_urgent)

    def _decode(self) -> tuple[list[tuple[Question, list[int]]], list[tuple[Question, Exception]]]:
        if not self._slots:
            return [], []
        questions = list(self._slots.questions)
        started_s = time.perf_counter()
        left = self._slots.step()
        seconds = (time.perf_counter() - started_s) / len(questions)
        for question in questions:
            question.work.text_s += seconds
        return left

    def _finish(self, question: Question, ids: list[int]) -> None:
        work = question.work
        if work.is_over:
            return
        try:
            question.take(ids, self._checkpoint.tokenizer.decode(ids))
        except Exception as error:  # The model's words are untrusted too.
            self._give_up(work, error)
            return
        work.end_when_answered()
        if work.is_over:
            self._tried_alone.discard(work)

    def _give_up(self, work: Work, error: Exception) -> None:
        """End a request without an answer; what else is asked about its picture leaves with it."""
        if work.is_over:
            return
        self._tried_alone.discard(work)
        self._seen = [question for question in self._seen if question.work is not work]
        self._slots.leave(work.questions)
        work.fail(error)

    def _retreat(self, error: Exception) -> None:
        """The model failed: begin anew with fewer at once, so that only who fails alone gets no answer.

        Short of memory, the batch is halved for good; otherwise those that were there are tried one at a time.
        """
        questions, seeing = self._slots.questions, self._seeing
        self._slots, self._seeing = Slots(self.backend), []
        works = list(dict.fromkeys([question.work for question in questions] + seeing))
        count = len(questions) + len(seeing)
        if count <= 1:
            for work in works:
                self._give_up(work, error)
            return
        if is_out_of_memory(error):
            self.batch = max(1, min(self.batch, count) // 2)
            log.warning("not enough memory for %d at once; from now on at most %d: %s", count, self.batch, error)
        else:
            self._tried_alone |= set(works)
            log.error("the model failed; its %d pictures are tried one by one", len(works), exc_info=error)
        self._seen = questions + self._seen
        self._ahead.put_back(seeing)


def _answers_of(end: Done | Failed) -> tuple[list[Answer], Stages]:
    if isinstance(end, Failed):
        raise error_of(end)
    return list(end.answers), end.stages
