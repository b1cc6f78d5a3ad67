"""From an image to a job, and from a job to its result and its sidecars."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from florence_daemon.config import ModelConfig
from florence_daemon.engine.protocol import Ask, Done, Source
from florence_daemon.engine.suspects import MAX_CRASHES
from florence_daemon.errors import (
    CheckpointError,
    EngineCrashed,
    FlorenceError,
    FolderBlocked,
    PictureError,
    PoorAnswer,
    PromptError,
    Stopping,
    TruncatedPicture,
    UnfitSidecar,
    UnreadablePicture,
)
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.needs import Makes
from florence_daemon.folders.settle import stamp_of
from florence_daemon.job_log import describe, log_done, log_failed
from florence_daemon.liveness import SHOW_S
from florence_daemon.logs import printable
from florence_daemon.quality import other_asks, reasons_against, with_others
from florence_daemon.queue import Image, Job, JobQueue, Kind
from florence_daemon.sidecar_writer import PictureChanged, SidecarWriter
from florence_daemon.tally import Tally

log = logging.getLogger(__name__)

# While the model cannot be loaded, folders wait this long before they are tried again.
PAUSE_S = 30.0
# Sidecars that are being written at a stop get this long.
CLOSE_S = 5.0
# Threads that write sidecars, for each folder, since one may be on a share that hangs. Most of the time they wait.
WRITERS = 4


class AnswersRequests(Protocol):
    """What a worker needs of the engine."""

    @property
    def in_flight(self) -> int:
        """How many requests at once keep it busy."""

    def submit(
        self,
        picture: Source,
        asks: tuple[Ask, ...],
        *,
        urgent: bool = False,
        on_begun: Callable[[], None] | None = None,
    ) -> Future[Done]:
        """Answer `asks` about `picture`. on_begun: called when it is begun with."""


class Folders(Protocol):
    """What a worker tells the folders that are watched."""

    def touch(self, path: str, delay_s: float = 0.0) -> None:
        """Look at `path` again after `delay_s`."""

    def pause(self, path: str, reason: str) -> None:
        """Submit nothing from there until it can be written again."""

    def is_paused(self, path: str) -> bool:
        """Tell whether `path` waits until then."""


class NoFolders:
    """Nothing is watched: nobody looks again."""

    def touch(self, path: str, delay_s: float = 0.0) -> None:
        """Do nothing."""

    def pause(self, path: str, reason: str) -> None:
        """Do nothing."""

    def is_paused(self, path: str) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Counts:
    """Images since the start."""

    captioned: int = 0
    failed: int = 0


class Worker:
    """Takes jobs off the queue and hands the engine as many at once as keep it busy; ends each when it is answered.

    `run_once` is one step; `run` repeats it on a thread of its own. Jobs of people and all others have as many places
    each, so that people never wait for a folder, nor a folder for more of a backfill than the engine holds.
    """

    def __init__(
        self,
        queue: JobQueue,
        engine: AnswersRequests,
        ledger: Ledger,
        makes: Makes,
        *,
        folders: Folders | None = None,
        on_done: Callable[[Job, Done], None] = lambda job, done: None,
        show_life: Callable[[], None] = lambda: None,
        tally: Tally | None = None,
        clock: Callable[[], float] = time.monotonic,
        pool: Executor | None = None,
        model: ModelConfig | None = None,
    ) -> None:
        """makes: how each output is made now. folders: those that are watched. model: how the engine searches.

        pool: writes sidecars, instead of threads for each folder. on_done: told of every answered job.
        show_life: called between steps, every few seconds. tally: counts what was done.
        """
        self._queue = queue
        self._engine = engine
        self._ledger = ledger
        self._writer = SidecarWriter(ledger, makes)
        self._folders = folders or NoFolders()
        self._on_done = on_done
        self._show_life = show_life
        self._tally = tally or Tally()
        self._clock = clock
        self.model = model or ModelConfig()
        self._pool = pool
        self._pools: dict[str | None, Executor] = {}  # by folder
        self._pools_lock = threading.Lock()
        self._is_closed = False
        self._paused_until_s = 0.0
        self._stopped = threading.Event()
        self._count_lock = threading.Lock()
        self.counts = Counts()

    def run(self) -> None:
        """Work until `stop`; the queue must be closed too, which wakes a worker that waits."""
        while not self._stopped.is_set():
            try:
                self.run_once(SHOW_S)
            except Exception:
                log.exception("the worker failed; it goes on")
            self._show_life()

    def stop(self) -> None:
        """Make `run` return; what the engine has by then is still ended."""
        self._stopped.set()

    def close(self) -> None:
        """Wait for the sidecars that are being written; to be called once the engine has nothing more.

        One that hangs in a dead share is left behind: its claim is taken up by the next start.
        """
        with self._pools_lock:
            self._is_closed = True
            pools = list(self._pools.values())
        closing = [threading.Thread(target=pool.shutdown, name="write-close", daemon=True) for pool in pools]
        for thread in closing:
            thread.start()
        until_s = time.monotonic() + CLOSE_S
        for thread in closing:
            thread.join(max(0.0, until_s - time.monotonic()))

    def run_once(self, timeout_s: float | None) -> bool:
        """Hand over the jobs whose turn it is; False when there were none, or no place for them.

        While the model cannot be had, only requests are served (with that error); folders wait on disk.
        """
        pause_s = self._paused_until_s - self._clock()
        kinds = [Kind.HTTP] if pause_s > 0 else list(Kind)
        if pause_s > 0:
            timeout_s = pause_s if timeout_s is None else min(pause_s, timeout_s)
        jobs = self._claim(timeout_s, kinds)
        for job in jobs:
            self._hand_over(job)
        return bool(jobs)

    def _claim(self, timeout_s: float | None, kinds: Sequence[Kind]) -> list[Job]:
        """Take jobs off the queue up to the next request of people, who do not wait for more.

        The images among them are claimed in the ledger at once: one wait for the disk instead of many.
        """
        jobs: list[Job] = []
        while (job := self._queue.claim(0 if jobs else timeout_s, kinds, lambda: self._engine.in_flight)) is not None:
            jobs.append(job)
            if job.image is None:
                break
        images = [(job.image.path, job.image.stamp) for job in jobs if job.image is not None]
        try:
            if images:
                self._ledger.claim(images)
        except Exception:
            # They are off the queue by now: whoever drops them here loses them, and their places, for ever.
            log.exception("%d images could not be noted in the ledger; they are captioned all the same", len(images))
        return jobs

    def _hand_over(self, job: Job) -> None:
        started_s = self._clock()
        try:
            if job.image is not None and self._folders.is_paused(job.image.path):
                raise FolderBlocked("its folder cannot be written now")
            answer = self._engine.submit(
                job.picture,
                job.others or job.asks,
                urgent=job.kind is Kind.HTTP,
                on_begun=partial(self._note_begun, job),
            )
        except Exception as error:  # Ended like one that the engine answers with an error.
            answer = Future()
            answer.set_exception(error)
        answer.add_done_callback(lambda answered: self._take(job, answered, started_s))

    def _note_begun(self, job: Job) -> None:
        job.begun_s = self._clock() if job.begun_s is None else job.begun_s
        if job.image is not None:
            self._ledger.begun(job.image.path)

    def _take(self, job: Job, answered: Future[Done], started_s: float) -> None:
        """Called by the engine's thread, which must not wait for a disk, nor people for others' sidecars."""
        if job.image is None:
            self._end(job, answered, started_s)
        else:
            self._queue.answered(job)
            try:
                self._pool_of(job.image).submit(self._end, job, answered, started_s)
            except RuntimeError:  # Closed by a stop that waits for nothing: its claim is taken up by the next start.
                self._queue.finish(job)
                job.future.set_exception(Stopping("the daemon stopped before this was written"))

    def _pool_of(self, image: Image) -> Executor:
        """Raises: RuntimeError after `close`, as the pools that are there do."""
        with self._pools_lock:
            if self._is_closed:
                raise RuntimeError("the writers have closed")
            if image.root not in self._pools:
                self._pools[image.root] = self._pool or ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
            return self._pools[image.root]

    def _end(self, job: Job, answered: Future[Done], started_s: float) -> None:
        """End a job, in whatever thread; nothing that it meets may go unheard there, nor keep the job from its end."""
        try:
            self._end_with(job, answered, started_s)
        except Exception as error:
            log.exception("%s: could not be ended as it should", describe(job))
            self._queue.finish(job)
            if not job.future.done():
                job.future.set_exception(FlorenceError(f"failed: {error!r}"))

    def _end_with(self, job: Job, answered: Future[Done], started_s: float) -> None:
        """End a job one way or the other."""
        try:
            done = answered.result()
            self._tally.answered(job, done)
            if job.image is not None:
                done = done if job.first is None else with_others(job.first, done)
                if self._is_asked_again(job, job.image, done):
                    return
                self._write(job, job.image, done)
        except FlorenceError as error:
            self._fail(job, error, started_s)
        except Exception as error:
            log.exception("%s: failed in a way nobody foresaw", describe(job))
            self._fail(job, FlorenceError(f"failed: {error!r}"), started_s)
        else:
            self._queue.finish(job)
            self._tally.ended(job, "done")
            log_done(job, done, self._clock() - started_s)
            self._on_done(job, done)
            job.future.set_result(done)

    def _is_asked_again(self, job: Job, image: Image, done: Done) -> bool:
        """Queue a job once more whose answers are no good, or are those of two models. Raises: Stopping."""
        first: Done | None = None
        others: tuple[Ask, ...] = ()
        model = self.model
        if job.first is None:
            first, others = done, other_asks(job.asks, done, model)
            if not others:
                return False
            log.info("%s: asked once more in another way: %s", describe(job), printable(reasons_against(done)))
        elif job.first_by == model:
            return False
        # It waits again: nothing that happens to this process until its turn comes is its fault.
        self._ledger.release(image.path)
        self._queue.put_again(job, first, others, model)
        return True

    def _write(self, job: Job, image: Image, done: Done) -> None:
        started_s = self._clock()
        self._count(captioned=self._writer.write(image, done))
        self._tally.wrote(job, self._clock() - started_s)

    def _fail(self, job: Job, error: FlorenceError, started_s: float) -> None:
        if job.kind is Kind.FOLDER and isinstance(error, CheckpointError):
            # Not the picture's fault: it waits until the model can be had.
            self._paused_until_s = self._clock() + (error.retry_s or PAUSE_S)
            self._queue.put_back(job)
            return
        self._queue.finish(job)
        reason = printable(reason_of(error, job.image.path if job.image else ""))
        log_failed(job, error, reason, self._clock() - started_s)
        is_listed = job.image is None or self._note_failure(job.kind, job.image, error, reason)
        self._tally.ended(job, "failed" if is_listed else "postponed")
        job.future.set_exception(error)

    def _note_failure(self, kind: Kind, image: Image, error: FlorenceError, reason: str) -> bool:
        """List the image with its reason, unless it is only late: stopped, blocked, changed or deleted meanwhile.

        Returns whether it is listed.
        """
        if isinstance(error, Stopping | CheckpointError):
            self._ledger.release(image.path)
        elif isinstance(error, PictureChanged) or stamp_of(image.path) is None:
            self._ledger.settled(image.path)
            self._folders.touch(image.path)
        elif kind is Kind.FOLDER and isinstance(error, FolderBlocked):
            self._ledger.release(image.path)
            if not self._folders.is_paused(image.path):
                self._folders.pause(image.path, reason)
        else:
            self._list_failure(image, reason, error)
            return True
        return False

    def _list_failure(self, image: Image, reason: str, error: FlorenceError) -> None:
        self._count(failed=1)
        wait_s = self._ledger.failed(
            image.path,
            reason,
            image.stamp,
            MAX_CRASHES if isinstance(error, EngineCrashed) else 1,
            error=type(error).__name__,
            heals=may_heal(error),
        )
        if wait_s is not None:
            self._folders.touch(image.path, wait_s)

    def _count(self, *, captioned: int = 0, failed: int = 0) -> None:
        with self._count_lock:
            self.counts = Counts(self.counts.captioned + captioned, self.counts.failed + failed)


def may_heal(error: FlorenceError) -> bool:
    """Tell whether to try the same file again may help."""
    if isinstance(error, TruncatedPicture | UnreadablePicture):
        return True
    return not isinstance(error, PictureError | PromptError | EngineCrashed | UnfitSidecar | PoorAnswer)


def reason_of(error: FlorenceError, path: str) -> str:
    """What went wrong, without the picture's path, which the reader sees already."""
    return str(error).removeprefix(path).lstrip(": ")
