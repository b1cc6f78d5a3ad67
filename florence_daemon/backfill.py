"""Backfill: caption everything below some paths once, show how far it is, list what failed."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from florence_daemon.config import Config, FolderConfig, ModelConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.daemon import Works
from florence_daemon.engine.protocol import Done, Stages
from florence_daemon.errors import (
    CheckpointError,
    ConfigError,
    DiskFull,
    EngineCrashed,
    FlorenceError,
    PictureError,
    ServerError,
    SidecarError,
    Stopping,
)
from florence_daemon.folders import sidecars
from florence_daemon.folders.asking import asks_of
from florence_daemon.folders.atomic import remove_left_behind
from florence_daemon.folders.inherited import Inherited
from florence_daemon.folders.ledger import SET_ASIDE, Ledger
from florence_daemon.folders.names import is_image_name
from florence_daemon.folders.needs import Makes, Needs, leaves_existing, owner_of, shared_sidecar
from florence_daemon.folders.records import Entry, Making, making_of, prompt_of, shape_of
from florence_daemon.folders.scan import Listing, list_directories
from florence_daemon.folders.settle import stamp_of
from florence_daemon.overrides import Settings
from florence_daemon.quality import other_asks, with_others
from florence_daemon.queue import Image, Job, JobQueue, Kind
from florence_daemon.sidecar_writer import SidecarWriter
from florence_daemon.worker import reason_of

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
        return reason_of(self.error, self.image.path) if self.error is not None else ""


class Backfill:
    """The images below `paths` that need something, and the run over them."""

    def __init__(
        self,
        paths: Sequence[Path],
        outputs: tuple[OutputConfig, ...],
        ledger: Ledger,
        makes: Makes,
        *,
        overwrite: str | None = None,
        given: Collection[str] = (),
        watched: Sequence[FolderConfig] = (),
        on_unreadable: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        """makes: how each output is made now.

        overwrite: as for a watched folder, but always rewrites everything; None: what a directory says, or never.
        given: what no `.florence.yaml` may change of `outputs`: these themselves, or options of them.
        watched: in these folders, such files count from the folder on, else from the path on.
        Raises: PictureError for a path that is not there or is no picture.
        """
        for path in paths:
            if not path.exists():
                raise PictureError(f"{path}: there is no such file or folder")
            if path.is_file() and not is_image_name(path.name):
                raise PictureError(f"{path}: this is not a picture's name; give pictures or folders of pictures")
        self._paths = paths
        self._outputs = outputs
        self._options = {name: getattr(outputs[0], name) for name in given if name != "outputs"}
        self._fixed = frozenset(given) | (frozenset() if overwrite is None else {"overwrite"})
        self._watched = watched
        self._inherited: dict[str, Inherited] = {}
        self.ledger = ledger
        self.makes = makes
        self._needs = Needs(ledger, makes)
        self._overwrite = overwrite or "never"
        self._on_unreadable = on_unreadable

    def images(self, *, cleans: bool = False) -> Iterator[tuple[Image, FlorenceError | None]]:
        """The images that need something, each with the reason if it cannot have it; found by looking at each call.

        A directory at a time is in memory, and the ledger is asked once for each. cleans: what processes that were
        killed left unfinished there is removed.
        """
        for root, listing in self._listings():
            if cleans:
                remove_left_behind(listing.directory, listing.names)
            yield from self._images_of(listing, root)

    def _listings(self) -> Iterator[tuple[str, Listing]]:
        """What each directory holds, and the folder that it was found in; pictures in a row that share one are one."""
        for directory, paths in itertools.groupby(self._paths, lambda path: path.parent if path.is_file() else None):
            if directory is None:
                for path in paths:
                    folder = FolderConfig(path=path)
                    yield from (
                        (os.fspath(path), each) for each in list_directories(folder, on_error=self._on_unreadable)
                    )
                continue
            try:
                names = frozenset(os.listdir(directory))
            except OSError as error:
                self._on_unreadable(error)
            else:
                yield os.fspath(directory), Listing(os.fspath(directory), tuple(path.name for path in paths), names)

    def _settings(self, root: str, directory: str) -> Settings:
        """What counts in a directory. Raises: ConfigError when a `.florence.yaml` is wrong."""
        root = os.path.abspath(root)
        holding = [each for each in self._watched if os.path.join(root, "").startswith(os.path.join(each.path, ""))]
        folder = max(holding, key=lambda each: len(os.fspath(each.path)), default=FolderConfig(path=Path(root)))
        top = os.fspath(folder.path)
        inherited = self._inherited.setdefault(top, Inherited(top, fresh_s=0.0))
        base = FolderConfig(path=folder.path, inherit=folder.inherit, outputs=self._outputs, overwrite=self._overwrite)
        return inherited.settings(Settings(base, options=self._options, fixed=self._fixed), os.path.abspath(directory))

    def _images_of(self, listing: Listing, root: str) -> Iterator[tuple[Image, FlorenceError | None]]:
        try:
            here = self._settings(root, listing.directory)
        except ConfigError as error:
            for name in listing.images:
                path = listing.path(name)
                yield Image(path, self._outputs, stamp_of(path), self._overwrite, root=root), error
            return
        is_left = leaves_existing(here.outputs, here.overwrite)
        known = self.ledger.troubled if is_left else self.ledger.known
        entries = known(os.path.abspath(listing.directory))
        stems: dict[str, list[str]] = defaultdict(list)
        for name in listing.names:
            if is_image_name(name) and here.takes(os.path.abspath(listing.path(name))):
                stems[sidecars.stem_of(name)].append(name)
        for name in listing.images:
            if not here.takes(os.path.abspath(listing.path(name))):
                continue
            path, entry, namesakes = listing.path(name), entries.get(name), stems[sidecars.stem_of(name)]
            owner = name if len(namesakes) == 1 else owner_of(namesakes, partial(self._entry, listing))
            outputs = self._due(here, listing, path, entry) if owner == name else here.outputs
            if outputs:
                is_suspect = entry is not None and entry.left > 0
                image = Image(path, outputs, stamp_of(path), here.overwrite, is_suspect, root)
                yield image, self._reason_against(image, owner, entry)

    def _entry(self, listing: Listing, name: str) -> Entry | None:
        return self.ledger.entry(listing.path(name))

    def _due(self, here: Settings, listing: Listing, path: str, entry: Entry | None) -> tuple[OutputConfig, ...]:
        # Who says so now means everything; a directory's own rule is for a picture, model or settings that changed.
        is_told = "overwrite" in self._fixed
        always = [each for each in here.outputs if is_told and each.rule(here.overwrite) == "always"]
        others = [each for each in here.outputs if each not in always]
        due = self._needs.due(
            path, others, here.overwrite, entry, lambda sidecar: listing.has(os.path.basename(sidecar))
        )
        return tuple(each for each in here.outputs if each in always or each in due)

    def _reason_against(self, image: Image, owner: str, entry: Entry | None) -> FlorenceError | None:
        """Why this image is not even tried: another has its sidecar, or it has brought down the engine before."""
        if owner != os.path.basename(image.path):
            return shared_sidecar(image.path, owner, image.outputs)
        try:
            sidecars.check_names(image.path, image.outputs)
        except SidecarError as error:
            return error
        failure = entry.failure if entry is not None else None
        if failure is not None and failure.error == SET_ASIDE and not self._needs.may_try(failure, image.path):
            return EngineCrashed(failure.reason)
        return None

    def run(
        self, submit: Callable[[Image], Future[Done]], is_stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Outcome]:
        """Hand each image to `submit`, a few ahead, and yield what became of it as it ends.

        Once `is_stopped` says so, no more are started, and it ends with those that the model is at.

        Raises: CheckpointError, ServerError, DiskFull when nothing can be captioned at all.
        """
        running: dict[Future[Done], Image] = {}
        images = self.images(cleans=True)
        is_exhausted = False
        while running or not (is_exhausted or is_stopped()):
            while len(running) < WINDOW and not is_exhausted and not is_stopped():
                image, reason = next(images, (None, None))
                if image is None:
                    is_exhausted = True
                elif reason is not None:
                    yield Outcome(image, error=reason)
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
    except (CheckpointError, ServerError, Stopping, DiskFull):
        raise
    except FlorenceError as error:
        return Outcome(image, error=error)


class ServerCaptioner:
    """Captions images through running daemons: the pictures travel, the sidecars are written here."""

    def __init__(self, clients: Sequence[Client], writer: SidecarWriter) -> None:
        self._clients = itertools.cycle(clients)
        self._writer = writer
        self._pool = concurrent.futures.ThreadPoolExecutor(SENDERS * len(clients), thread_name_prefix="send")

    def submit(self, image: Image) -> Future[Done]:
        """Send one image to the next server in turn."""
        return self._pool.submit(self._caption, image, next(self._clients))

    def close(self) -> None:
        """Wait for what is on its way; drop what is not."""
        self._pool.shutdown(cancel_futures=True)

    def _caption(self, image: Image, client: Client) -> Done:
        asks = asks_of(image.outputs)
        done = Done(0, client.ask(image.path, asks, priority="backfill"), _size_px(image), Stages())
        # The server gives what the model said; to ask once more for what is no caption is up to who writes it.
        others = other_asks(asks, done, ModelConfig())
        if others:
            done = with_others(done, replace(done, answers=client.ask(image.path, others, priority="backfill")))
        self._writer.write(image, done)
        return done


def _size_px(image: Image) -> tuple[int, int]:
    """The upright picture's size, which a server does not tell, where a sidecar says it. Raises: PictureError."""
    if not any(output.is_structured for output in image.outputs):
        return (0, 0)
    from florence_daemon.engine.preprocess import read_header

    return read_header(image.path).size_px


def makes_of(config: Config, servers: Sequence[str]) -> Makes:
    """How outputs are made: here, or at the first of these servers, which tells its model but not its settings."""
    if not servers:
        return partial(making_of, config.model)
    from florence_daemon.client import open_client

    model = cache(open_client(servers[0], config.server).model)
    return lambda output: Making(model(), prompt_of(output), shape_of(output))


@contextmanager
def open_captioner(work: Backfill, config: Config, servers: Sequence[str]) -> Iterator[Callable[[Image], Future[Done]]]:
    """Give the function that captions an image: through these servers, or, with none, an engine of this process."""
    if servers:
        from florence_daemon.client import open_client

        clients = [open_client(server, config.server) for server in servers]
        captioner = ServerCaptioner(clients, SidecarWriter(work.ledger, work.makes))
        try:
            yield captioner.submit
        finally:
            captioner.close()
            work.ledger.flush()
        return
    works = Works(config, JobQueue(config.server.max_queued), work.ledger)
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
