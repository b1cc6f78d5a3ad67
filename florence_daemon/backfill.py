"""Backfill: caption everything below some paths once, show how far it is, list what failed."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import attrs

from florence_daemon.config import Config, FolderConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.daemon import Works
from florence_daemon.engine.protocol import Done
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
from florence_daemon.folders.records import Entry, making_of
from florence_daemon.folders.scan import Listing, list_directories
from florence_daemon.folders.settle import stamp_of
from florence_daemon.overrides import Settings
from florence_daemon.peer import first_offer
from florence_daemon.queue import Image, Job, JobQueue, Kind
from florence_daemon.worker import reason_of

# Images that are looked up ahead: more than six GPUs take at once; only their paths are held.
WINDOW = 512
# Seconds between two looks whether it is to stop, and until images are tried again for which no server answered.
LOOK_S = 0.2
OUTAGE_S = 2.0


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
        self.found = 0  # pictures that the last look has come upon so far, whether they need something or not
        self.unreadable: list[OSError] = []  # directories that it could not look into

    def images(self, *, cleans: bool = False) -> Iterator[tuple[Image, FlorenceError | None]]:
        """The images that need something, each with the reason if it cannot have it; found by looking at each call.

        A directory at a time is in memory, and the ledger is asked once for each. cleans: what processes that were
        killed left unfinished there is removed.
        """
        self.found, self.unreadable = 0, []
        for root, listing in self._listings():
            self.found += len(listing.images)
            if cleans:
                remove_left_behind(listing.directory, listing.names)
            yield from self._images_of(listing, root)

    def _listings(self) -> Iterator[tuple[str, Listing]]:
        """What each directory holds, and the folder that it was found in; pictures in a row that share one are one."""
        for directory, paths in itertools.groupby(self._paths, lambda path: path.parent if path.is_file() else None):
            if directory is None:
                for path in paths:
                    folder = FolderConfig(path=path)
                    listings = list_directories(folder, on_error=self.unreadable.append)
                    yield from ((os.fspath(path), each) for each in listings)
                continue
            try:
                names = frozenset(os.listdir(directory))
            except OSError as error:
                self.unreadable.append(error)
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
        self,
        submit: Callable[[Image], Future[Done]],
        is_stopped: Callable[[], bool] = lambda: False,
        outage: Outage | None = None,
    ) -> Iterator[Outcome]:
        """Hand each image to `submit`, a few ahead, and yield what became of it as it ends.

        Once `is_stopped` says so, no more are started, and it ends with those that the model is at.
        outage: how to wait while the model cannot be had; None does not.

        Raises: CheckpointError, ServerError, DiskFull when nothing can be captioned at all.
        """
        running: dict[Future[Done], Image] = {}
        images = self.images(cleans=True)
        is_exhausted = False
        while running or (not is_stopped() and (not is_exhausted or (outage is not None and outage.images))):
            again = outage.take(is_idle=not running) if outage is not None and not is_stopped() else []
            running |= {submit(image): image for image in again}
            has_place = outage is None or not outage.images
            while has_place and len(running) < WINDOW and not is_exhausted and not is_stopped():
                image, reason = next(images, (None, None))
                if image is None:
                    is_exhausted = True
                elif reason is not None:
                    yield Outcome(image, error=reason)
                else:
                    running[submit(image)] = image
            if is_stopped():
                running = {future: image for future, image in running.items() if not future.cancel()}
            ended, _ = concurrent.futures.wait(running, LOOK_S, concurrent.futures.FIRST_COMPLETED)
            for future in ended:
                image = running.pop(future)
                if outage is None or not outage.holds_up(image, future):
                    yield _outcome(image, future)


def _outcome(image: Image, future: Future[Done]) -> Outcome:
    try:
        return Outcome(image, done=future.result())
    except (CheckpointError, ServerError, Stopping, DiskFull):
        raise
    except FlorenceError as error:
        return Outcome(image, error=error)


class Outage:
    """The images that wait because no server answers. images: they are tried again, in their order, after a pause."""

    def __init__(self, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> None:
        """say: told once when the servers go, and when one is back."""
        self._say = say
        self._sleep = sleep
        self._is_told = False
        self.images: list[Image] = []

    def holds_up(self, image: Image, ended: Future[Done]) -> bool:
        """Take an image whose turn ended because no server answers; false for any other end."""
        error = ended.exception()
        if isinstance(error, CheckpointError):
            self.images.append(image)
            if not self._is_told:
                self._say(f"{error}; what is left waits until a server answers")
            self._is_told = True
            return True
        if self._is_told and error is None and not self.images:  # else it may have been answered before
            self._say("a server answers again")
            self._is_told = False
        return False

    def take(self, *, is_idle: bool) -> list[Image]:
        """Those to be tried now. is_idle: nothing else is under way, so there is time for a pause before."""
        if not self.images or not is_idle:
            return []
        self._sleep(OUTAGE_S)
        again, self.images = sorted(self.images, key=lambda image: image.path), []
        return again


def makes_of(config: Config) -> Makes:
    """How outputs are made: by the settings, or as the first of the servers says that answers.

    What is returned asks it once, when it is needed. Raises, then: ServerError when none answers.
    """
    model = config.model
    if not model.server:
        return partial(making_of, model)
    served = cache(lambda: first_offer(model.server, model.server_token).served)
    return lambda output: making_of(attrs.evolve(model, **asdict(served())), output)


@contextmanager
def open_captioner(work: Backfill, config: Config) -> Iterator[Callable[[Image], Future[Done]]]:
    """Give the function that captions an image, with the engines of this process: they load a model, or ask servers."""
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
