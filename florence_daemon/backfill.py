"""Backfill: caption everything below some paths once, show how far it is, list what failed."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from florence_daemon.config import Config, FolderConfig, OutputConfig
from florence_daemon.daemon import Works
from florence_daemon.engine.protocol import Done, Stages
from florence_daemon.errors import CheckpointError, FlorenceError, PictureError, ServerError, Stopping
from florence_daemon.folders import sidecars
from florence_daemon.folders.names import is_image_name
from florence_daemon.folders.scan import find_images
from florence_daemon.folders.settle import stamp_of
from florence_daemon.queue import Image, Job, Kind
from florence_daemon.worker import asks_of, shared_sidecar, write_sidecars

if TYPE_CHECKING:
    from florence_daemon.client import Client

# Images that are looked up ahead: more than any engine takes at once; only their paths are held.
WINDOW = 128
# Pictures that are sent to one server at once: they are held in memory, and take half of its places (`max_queued`).
SENDERS = 16


@dataclass(frozen=True)
class Outcome:
    """What became of one image: its answers, or why there are none."""

    image: Image
    done: Done | None = None
    error: FlorenceError | None = None

    @property
    def reason(self) -> str:
        """Why there are no answers, without the path, which the reader sees already."""
        return str(self.error).removeprefix(self.image.path).lstrip(": ")


class Backfill:
    """The images below `paths` that lack a sidecar, and the run over them."""

    def __init__(
        self,
        paths: Sequence[Path],
        outputs: tuple[OutputConfig, ...],
        *,
        overwrite: bool = False,
        on_unreadable: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        """Raises: PictureError for a path that is not there or is no picture."""
        for path in paths:
            if not path.exists():
                raise PictureError(f"{path}: there is no such file or folder")
            if path.is_file() and not is_image_name(path.name):
                raise PictureError(f"{path}: this is not a picture's name; give pictures or folders of pictures")
        self._paths = paths
        self._outputs = outputs
        self._overwrite = overwrite
        self._on_unreadable = on_unreadable

    def images(self) -> Iterator[Image]:
        """The images that need something, found by looking anew at each call."""
        for path in self._paths:
            folder = FolderConfig(path=path)
            found = [os.fspath(path)] if path.is_file() else find_images(folder, on_error=self._on_unreadable)
            for image in found:
                outputs = self._outputs if self._overwrite else sidecars.missing_outputs(image, self._outputs)
                if outputs or sidecars.image_with_same_sidecar(image):
                    yield Image(image, outputs or self._outputs, stamp_of(image), self._overwrite)

    def run(
        self, submit: Callable[[Image], Future[Done]], is_stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Outcome]:
        """Hand each image to `submit`, a few ahead, and yield what became of it as it ends.

        Once `is_stopped` says so, no more are started, and it ends with those that the model is at.

        Raises: CheckpointError, ServerError when nothing can be captioned at all.
        """
        running: dict[Future[Done], Image] = {}
        images = self.images()
        is_exhausted = False
        while running or not (is_exhausted or is_stopped()):
            while len(running) < WINDOW and not is_exhausted and not is_stopped():
                image = next(images, None)
                if image is None:
                    is_exhausted = True
                elif owner := sidecars.image_with_same_sidecar(image.path):
                    yield Outcome(image, error=shared_sidecar(image.path, owner, image.outputs))
                else:
                    running[submit(image)] = image
            if is_stopped():
                running = {future: image for future, image in running.items() if not future.cancel()}
            ended, _ = concurrent.futures.wait(running, 0.2, concurrent.futures.FIRST_COMPLETED)
            for future in ended:
                yield _outcome(running.pop(future), future)


def _outcome(image: Image, future: Future[Done]) -> Outcome:
    try:
        return Outcome(image, done=future.result())
    except (CheckpointError, ServerError, Stopping):
        raise
    except FlorenceError as error:
        return Outcome(image, error=error)


class ServerCaptioner:
    """Captions images through running daemons: the pictures travel, the sidecars are written here."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = itertools.cycle(clients)
        self._pool = concurrent.futures.ThreadPoolExecutor(SENDERS * len(clients), thread_name_prefix="send")

    def submit(self, image: Image) -> Future[Done]:
        """Send one image to the next server in turn."""
        return self._pool.submit(self._caption, image, next(self._clients))

    def close(self) -> None:
        """Wait for what is on its way; drop what is not."""
        self._pool.shutdown(cancel_futures=True)

    @staticmethod
    def _caption(image: Image, client: Client) -> Done:
        answers = client.ask(image.path, asks_of(image.outputs), priority="backfill")
        done = Done(0, answers, (0, 0), Stages())
        if stamp_of(image.path) != image.stamp:
            raise PictureError(f"{image.path}: changed or went away while it was captioned; nothing was written")
        write_sidecars(image, done)
        return done


@contextmanager
def open_captioner(config: Config, servers: Sequence[str]) -> Iterator[Callable[[Image], Future[Done]]]:
    """Give the function that captions an image: through these servers, or, with none, an engine of this process."""
    if servers:
        from florence_daemon.client import Client

        captioner = ServerCaptioner([Client(server) for server in servers])
        try:
            yield captioner.submit
        finally:
            captioner.close()
        return
    works = Works(config)
    works.start()

    def submit(image: Image) -> Future[Done]:
        job = Job(Kind.BACKFILL, image.path, asks_of(image.outputs), image)
        works.queue.put(job)
        return job.future

    try:
        yield submit
    except KeyboardInterrupt:
        works.stop(at_once=True)
        raise
    finally:
        works.stop()
