"""From an image to a job, and from a job to its result and its sidecars."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from florence_daemon.config import FolderConfig, OutputConfig
from florence_daemon.engine.protocol import Ask, Done
from florence_daemon.engine.suspects import MAX_CRASHES
from florence_daemon.errors import CheckpointError, EngineCrashed, FlorenceError, SidecarError, Stopping
from florence_daemon.folders import sidecars
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.scan import Listing
from florence_daemon.folders.settle import Stamp, stamp_of
from florence_daemon.liveness import SHOW_S
from florence_daemon.queue import Image, Job, JobQueue, Kind
from florence_daemon.tasks import find_task

log = logging.getLogger(__name__)

# While the model cannot be loaded, folders wait this long before they are tried again.
PAUSE_S = 30.0
# Threads that write sidecars: each waits for the disk most of the time.
WRITERS = 4


class AnswersRequests(Protocol):
    """What a worker needs of the engine."""

    @property
    def in_flight(self) -> int:
        """How many requests at once keep it busy."""

    def submit(
        self,
        picture: str | bytes,
        asks: tuple[Ask, ...],
        *,
        urgent: bool = False,
        on_begun: Callable[[], None] | None = None,
    ) -> Future[Done]:
        """Answer `asks` about `picture`. on_begun: called when it is begun with."""


def asks_of(outputs: Collection[OutputConfig]) -> tuple[Ask, ...]:
    """What must be asked to fill these outputs, in their order."""
    found = [find_task(output.prompt) for output in outputs]
    return tuple(Ask(task.token, text) for task, text in found)


@dataclass(frozen=True)
class Counts:
    """Images since the start."""

    captioned: int = 0
    failed: int = 0


class _Changed(SidecarError):
    """The image on disk is not the one that was captioned; the watcher looks at it again."""


class FolderIntake:
    """Turns the images that a watcher finds into jobs: once each, only for what they lack."""

    def __init__(self, queue: JobQueue, ledger: Ledger) -> None:
        self._queue = queue
        self._ledger = ledger

    def waiting(self, folder: FolderConfig) -> int:
        """How many of the folder's images wait or run."""
        return self._queue.images_below(os.path.join(folder.path, ""))

    def lacking(self, folder: FolderConfig, listing: Listing) -> Iterator[str]:
        """The images of one directory that `needs` would name, told by the directory's names alone."""
        owners: dict[str, str] = {}
        for name in listing.images:
            stem = os.path.splitext(name)[0]
            is_first = owners.setdefault(stem, name) == name
            if is_first and all(stem + output.suffix in listing.names for output in folder.outputs):
                self._ledger.settled(listing.path(name))
            elif not self._queue.holds(listing.path(name)):
                yield name

    def needs(self, folder: FolderConfig, path: str) -> bool:
        """Tell whether a sidecar is missing that is not being made already, or belongs to another image.

        An image that has all of its sidecars, by whomever, leaves the list of failures.
        """
        if self._queue.holds(path):
            return False
        if sidecars.missing_outputs(path, folder.outputs) or sidecars.image_with_same_sidecar(path):
            return True
        self._ledger.settled(path)
        return False

    def submit(self, folder: FolderConfig, path: str, stamp: Stamp) -> None:
        """Queue the image, unless this very file was tried and refused."""
        if self._queue.holds(path) or self._has_failed(path, stamp):
            return
        owner = sidecars.image_with_same_sidecar(path)
        if owner is not None:
            reason = str(shared_sidecar(path, owner, folder.outputs))
            self._ledger.failed(path, reason, stamp)
            log.warning("%s: %s", printable(path), reason)
            return
        outputs = sidecars.missing_outputs(path, folder.outputs)
        if not outputs:
            return
        try:
            self._queue.put(Job(Kind.FOLDER, path, asks_of(outputs), Image(path, outputs, stamp)))
        except Stopping:
            log.debug("%s: found while stopping; the next start takes it up", printable(path))

    def _has_failed(self, path: str, stamp: Stamp) -> bool:
        entry = self._ledger.entry(path)
        return entry is not None and entry.failure is not None and entry.failure.stamp == stamp


def shared_sidecar(path: str, owner: str, outputs: Collection[OutputConfig]) -> SidecarError:
    """The error for `a.png` beside `a.jpg`: both would write `a.txt`."""
    names = ", ".join(os.path.basename(sidecars.sidecar_path(path, output)) for output in outputs)
    return SidecarError(
        f"its sidecar {names} belongs to {os.path.basename(owner)} in the same folder; rename one of the two"
    )


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
        *,
        on_changed: Callable[[str], None] = lambda path: None,
        on_done: Callable[[Job, Done], None] = lambda job, done: None,
        show_life: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        pool: Executor | None = None,
    ) -> None:
        """pool: writes sidecars, instead of threads of its own. show_life: called between steps, every few seconds.

        on_changed: told of an image that changed while it was answered. on_done: told of every answered job.
        """
        self._queue = queue
        self._engine = engine
        self._ledger = ledger
        self._on_changed = on_changed
        self._on_done = on_done
        self._show_life = show_life
        self._clock = clock
        self._pool = pool or ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
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

    def run_once(self, timeout_s: float | None) -> bool:
        """Claim one job and hand it over; False when there was none, or no place for it.

        While the model cannot be had, only requests are served (with that error); folders wait on disk.
        """
        pause_s = self._paused_until_s - self._clock()
        kinds = [Kind.HTTP] if pause_s > 0 else list(Kind)
        if pause_s > 0:
            timeout_s = pause_s if timeout_s is None else min(pause_s, timeout_s)
        job = self._queue.claim(timeout_s, kinds, lambda: self._engine.in_flight)
        if job is None:
            return False
        started_s = self._clock()
        try:
            answer = self._engine.submit(job.picture, job.asks, urgent=job.kind is Kind.HTTP)
        except Exception as error:  # Ended like one that the engine answers with an error.
            answer = Future()
            answer.set_exception(error)
        answer.add_done_callback(lambda answered: self._take(job, answered, started_s))
        return True

    def _take(self, job: Job, answered: Future[Done], started_s: float) -> None:
        """Called by the engine's thread, which must not wait for a disk, nor people for others' sidecars."""
        if job.image is None:
            self._end(job, answered, started_s)
        else:
            self._pool.submit(self._end, job, answered, started_s)

    def _end(self, job: Job, answered: Future[Done], started_s: float) -> None:
        """End a job, in whatever thread; nothing that it meets may go unheard there."""
        try:
            self._end_with(job, answered, started_s)
        except Exception:
            log.exception("%s: could not be ended", describe(job))

    def _end_with(self, job: Job, answered: Future[Done], started_s: float) -> None:
        """End a job one way or the other."""
        try:
            done = answered.result()
            if job.image is not None:
                self._keep(job.image, done)
        except FlorenceError as error:
            self._fail(job, error)
        except Exception as error:
            log.exception("%s: failed in a way nobody foresaw", describe(job))
            self._fail(job, FlorenceError(f"failed: {error!r}"))
        else:
            self._queue.finish(job)
            self._log_done(job, done, self._clock() - started_s)
            self._on_done(job, done)
            job.future.set_result(done)

    def _keep(self, image: Image, done: Done) -> None:
        """Write an image's sidecars. Raises: SidecarError; _Changed when the file is not the one asked about."""
        if image.stamp is not None and stamp_of(image.path) != image.stamp:
            raise _Changed("changed or went away while it was captioned; nothing was written")
        write_sidecars(image, done)
        self._ledger.settled(image.path)
        self._count(captioned=1)

    def _fail(self, job: Job, error: FlorenceError) -> None:
        if job.kind is Kind.FOLDER and isinstance(error, CheckpointError):
            # Not the picture's fault: it waits until the model can be had.
            self._paused_until_s = self._clock() + PAUSE_S
            self._queue.put_back(job)
            return
        self._queue.finish(job)
        if job.image is not None:
            self._note_failure(job.image, error)
        job.future.set_exception(error)

    def _note_failure(self, image: Image, error: FlorenceError) -> None:
        """List the image with its reason, unless it is only late: stopped before its turn, changed or deleted."""
        reason = str(error).removeprefix(image.path).lstrip(": ")
        log.warning("%s: not captioned: %s", printable(image.path), reason)
        if isinstance(error, Stopping):
            return
        if isinstance(error, _Changed) or stamp_of(image.path) is None:
            self._ledger.settled(image.path)
            self._on_changed(image.path)
            return
        self._count(failed=1)
        tries = MAX_CRASHES if isinstance(error, EngineCrashed) else 1
        self._ledger.failed(image.path, reason, image.stamp, tries)

    def _log_done(self, job: Job, done: Done, seconds: float) -> None:
        stages = done.stages
        log.info(
            "%s: %s in %.2f s (decode %.3f, vision %.3f, text %.3f)",
            describe(job), " ".join(ask.prompt for ask in job.asks), seconds,
            stages.decode_s, stages.vision_s, stages.text_s,
        )  # fmt: skip

    def _count(self, *, captioned: int = 0, failed: int = 0) -> None:
        with self._count_lock:
            self.counts = Counts(self.counts.captioned + captioned, self.counts.failed + failed)


def write_sidecars(image: Image, done: Done) -> list[str]:
    """Write the answers beside the image; return the paths that were written. Raises: SidecarError."""
    answers = zip(image.outputs, done.answers, strict=True)
    texts = [(output, sidecars.render(output, answer.result)) for output, answer in answers]
    return sidecars.write_all(image.path, texts, overwrite=image.overwrite)


def describe(job: Job) -> str:
    """What a log line calls a job: the image's path, or the size of what was sent."""
    if job.image is not None:
        return printable(job.image.path)
    if isinstance(job.picture, str):
        return printable(job.picture)
    return f"request of {len(job.picture):,} bytes"


def printable(path: str) -> str:
    """A path that can be printed anywhere: bytes that are not UTF-8 and control characters are escaped."""
    text = path.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
