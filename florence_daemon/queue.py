"""The one queue: people who wait go first, then watched folders, then backfill; in a class, first come first served."""

from __future__ import annotations

import bisect
import itertools
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum

from florence_daemon.config import ModelConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.engine.protocol import Ask, Done, Source
from florence_daemon.errors import QueueFull, Stopping
from florence_daemon.folders.settle import Stamp


class Kind(IntEnum):
    """The classes of work, in the order in which they are served."""

    HTTP = 0
    FOLDER = 1
    BACKFILL = 2


@dataclass(frozen=True)
class Image:
    """A picture on disk whose answers become sidecars.

    outputs: the sidecars to write; `asking.asks_of(outputs)` are the asks of the job.
    stamp: what the file looked like when it was taken; an answer about another file is thrown away.
    overwrite: the folder's rule for sidecars that are there; an output may have its own.
    is_suspect: a process died while it worked on this; of such images only one runs at a time.
    root: the folder that it was found in; a link below it is not followed. None follows all.
    """

    path: str
    outputs: tuple[OutputConfig, ...]
    stamp: Stamp | None
    overwrite: str = "never"
    is_suspect: bool = False
    root: str | None = None


@dataclass(eq=False)
class Job:
    """Everything asked about one picture. future: gets the answers, or an error of `errors`; cancel it to withdraw.

    picture: see `Source`. queued_s, begun_s: when it came, and when the engine began with it.
    first: what its first try gave, once some of that was no good, and first_by the model that it asked; others: what is
    asked in another way then.
    """

    kind: Kind
    picture: Source
    asks: tuple[Ask, ...]
    image: Image | None = None
    future: Future[Done] = field(default_factory=Future)
    number: int = 0  # its place in its class; the queue gives it
    queued_s: float = 0.0
    begun_s: float | None = None
    first: Done | None = None
    first_by: ModelConfig | None = None
    others: tuple[Ask, ...] = ()

    @property
    def is_suspect(self) -> bool:
        """Whether a process died while it worked on this image."""
        return self.image is not None and self.image.is_suspect


class JobQueue:
    """A priority queue that threads share. A job is waiting, then running, then finished; nothing else.

    One that runs has a place at the engine until it is answered; its sidecars may take longer.
    """

    def __init__(
        self,
        max_queued: int,
        *,
        on_withdrawn: Callable[[Job], None] = lambda job: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_withdrawn: told of jobs that nobody waited for any more before their turn came."""
        self._max_queued = max_queued
        self._on_withdrawn = on_withdrawn
        self._clock = clock
        self._waiting: dict[Kind, deque[Job]] = {kind: deque() for kind in Kind}
        self._running: set[Job] = set()
        self._answered: set[Job] = set()  # of those that run
        self._numbers = itertools.count(1)
        self._images: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Add a job. Raises: QueueFull (what came over the network only: folders wait on disk), Stopping."""
        with self._changed:
            if self._closed:
                raise Stopping("the daemon is stopping and takes no new work; try again when it is back")
            if job.image is None:
                self._refuse_when_full(job.kind)
            if job.image is not None:
                self._images[job.image.path] += 1
            job.number = next(self._numbers)
            job.queued_s = self._clock()
            self._waiting[job.kind].append(job)
            self._changed.notify_all()

    def put_back(self, job: Job) -> None:
        """Return a claimed job to its place in its class; nobody may be waiting for its future."""
        with self._changed:
            self._running.discard(job)
            self._answered.discard(job)
            job.future = Future()
            bisect.insort(self._waiting[job.kind], job, key=lambda each: each.number)
            self._changed.notify_all()

    def put_again(self, job: Job, first: Done | None, others: tuple[Ask, ...], model: ModelConfig) -> None:
        """Return a claimed job to its place in its class for its other try, or, without `first`, for its first one.

        model: the one that was asked. Raises: Stopping.
        """
        with self._changed:
            if self._closed:
                raise Stopping("the daemon stopped before this was tried in another way")
            job.first, job.others, job.first_by = first, others, model
            self._running.discard(job)
            self._answered.discard(job)
            bisect.insort(self._waiting[job.kind], job, key=lambda each: each.number)
            self._changed.notify_all()

    def withdraw(self, job: Job) -> None:
        """Drop a job that nobody waits for any more, and what it holds in memory; one that runs already goes on."""
        with self._changed:
            if job.future.cancel() and job in self._waiting[job.kind]:
                self._waiting[job.kind].remove(job)
                self._forget_image(job)
                self._on_withdrawn(job)
                self._changed.notify_all()

    def withdraw_folder(self, root: str, directory: str) -> None:
        """Drop the images of a watched folder at or below a directory that wait: what is asked of them has changed.

        Those of another folder that is watched below it are that one's own, which nobody would find again soon.
        """
        prefix = os.path.join(directory, "")
        with self._changed:
            waiting = self._waiting[Kind.FOLDER]
            images = [(job, job.image) for job in waiting if job.image is not None]
            for job in [job for job, image in images if image.root == root and image.path.startswith(prefix)]:
                waiting.remove(job)
                self._forget_image(job)
            self._changed.notify_all()

    def claim(
        self,
        timeout_s: float | None,
        kinds: Collection[Kind] = tuple(Kind),
        at_most: Callable[[], int] = lambda: sys.maxsize,
    ) -> Job | None:
        """Take the first job of these kinds, waiting for one; None after the time-out and once the queue is closed.

        at_most: how many may run at once, people's and all others counted apart; asked whenever the queue changes.

        A job whose future was cancelled is dropped: its client hung up, and it costs no inference.
        """

        def is_due() -> bool:
            return self._closed or self._first(kinds, at_most()) is not None

        with self._changed:
            while self._changed.wait_for(is_due, timeout_s):
                job = None if self._closed else self._first(kinds, at_most())
                if job is None:
                    return None
                self._waiting[job.kind].remove(job)
                if job.future.running() or job.future.set_running_or_notify_cancel():
                    self._running.add(job)
                    return job
                self._forget_image(job)
                self._on_withdrawn(job)
            return None

    def answered(self, job: Job) -> None:
        """Note that the engine has done with a job that runs on: a disk that hangs must not keep its place there."""
        with self._changed:
            if job in self._running:
                self._answered.add(job)
                self._changed.notify_all()

    def finish(self, job: Job) -> None:
        """Note that a claimed job has ended, whichever way; a second time changes nothing."""
        with self._changed:
            if job in self._running:
                self._running.remove(job)
                self._answered.discard(job)
                self._forget_image(job)
                self._changed.notify_all()

    def holds(self, path: str) -> bool:
        """Tell whether a job for this image waits or runs."""
        with self._changed:
            return self._images[path] > 0

    def images_below(self, prefix: str) -> int:
        """How many images whose paths begin so wait or run."""
        with self._changed:
            return sum(path.startswith(prefix) for path in self._images)

    def is_idle(self) -> bool:
        """Tell whether nothing waits and nothing runs."""
        with self._changed:
            return not self._running and not any(self._waiting.values())

    def counts(self) -> dict[str, int]:
        """Waiting jobs by kind, and how many run."""
        with self._changed:
            waiting = {kind.name.lower(): len(jobs) for kind, jobs in self._waiting.items()}
            return waiting | {"running": len(self._running)}

    def close(self) -> list[Job]:
        """Hand out nothing any more; return the jobs that were waiting, in order."""
        with self._changed:
            self._closed = True
            left = [job for jobs in self._waiting.values() for job in jobs]
            for jobs in self._waiting.values():
                jobs.clear()
            for job in left:
                self._forget_image(job)
            self._changed.notify_all()
            return left

    def wait_until_written(self, timeout_s: float | None) -> bool:
        """Wait until nothing that is answered has sidecars to write still; False when the time was too short."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._answered, timeout_s)

    def wait_until_done(self, timeout_s: float | None) -> bool:
        """Wait until nothing runs any more; False when the time was too short."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout_s)

    def _first(self, kinds: Collection[Kind], at_most: int) -> Job | None:
        """The job whose turn it is. Of suspects one runs at a time, so that they are not blamed for each other."""
        asked = self._running - self._answered
        people = sum(job.kind is Kind.HTTP for job in asked)
        suspect_runs = any(job.is_suspect for job in asked)
        for kind in Kind:
            running = people if kind is Kind.HTTP else len(asked) - people
            if kind in kinds and running < at_most:
                job = next((job for job in self._waiting[kind] if not (job.is_suspect and suspect_runs)), None)
                if job is not None:
                    return job
        return None

    def _forget_image(self, job: Job) -> None:
        if job.image is not None:
            self._images[job.image.path] -= 1
            if self._images[job.image.path] <= 0:
                del self._images[job.image.path]

    def _refuse_when_full(self, kind: Kind) -> None:
        """Bound what the network can pile up; clients that backfill leave half of the places to people who wait."""
        waiting = (*self._waiting[Kind.HTTP], *self._waiting[Kind.BACKFILL])
        kinds = [job.kind for job in (*waiting, *self._running) if job.image is None and not job.future.cancelled()]
        half = max(1, self._max_queued // 2)
        if len(kinds) >= self._max_queued or (kind is Kind.BACKFILL and kinds.count(kind) >= half):
            raise QueueFull(f"{len(kinds)} requests are waiting already; try again later")
