"""From the images that a watcher finds to jobs: once each, only for what they need, and not before their time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from florence_daemon.config import FolderConfig
from florence_daemon.errors import ConfigError, SidecarError, Stopping
from florence_daemon.folders import sidecars
from florence_daemon.folders.asking import asks_of
from florence_daemon.folders.atomic import remove_left_behind
from florence_daemon.folders.health import Health
from florence_daemon.folders.inherited import Inherited
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.names import is_wanted
from florence_daemon.folders.needs import Needs, leaves_existing, owner_of, shared_sidecar
from florence_daemon.folders.records import Entry
from florence_daemon.folders.scan import Listing
from florence_daemon.folders.settle import Stamp
from florence_daemon.folders.watch import is_inside
from florence_daemon.logs import printable
from florence_daemon.overrides import Settings
from florence_daemon.queue import Image, Job, JobQueue, Kind

log = logging.getLogger(__name__)

# Which pictures of a directory share a sidecar is known from its scan for so long; then the disk is asked for each.
# Who comes in between is told apart by the next scan.
NAMESAKES_S = 30.0


class FolderIntake:
    """Decides, for a file or a whole directory, what of a watched folder goes into the queue. Threads share it."""

    def __init__(
        self, queue: JobQueue, ledger: Ledger, needs: Needs, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue = queue
        self._ledger = ledger
        self._needs = needs
        self._clock = clock
        self._inherited: dict[str, Inherited] = {}  # by watched folder
        self._left: list[FolderConfig] = []  # their threads may not have noticed yet
        self._left_lock = threading.Lock()
        self._seen: set[str] = set()
        self._scanned_lock = threading.Lock()
        self._scanned: dict[str, tuple[float, dict[str, list[str]]]] = {}

    def waiting(self, folder: FolderConfig) -> int:
        """How many of the folder's images wait or run."""
        return self._queue.images_below(os.path.join(folder.path, ""))

    def look_at_settings(self, folder: FolderConfig, directory: str | None = None) -> bool:
        """Look at the settings of one directory, or all that are known; True when it must be done again in a moment."""
        if not folder.inherit:
            return False
        if directory is not None:
            return self._inherited_in(folder).look(directory)
        self._inherited_in(folder).look_around()
        return False

    def renewed(self, folder: FolderConfig) -> Collection[str]:
        """The directories whose settings are new; what waits of them is taken back, to be found again."""
        found = self._inherited_in(folder).renewed()
        for directory in found:
            self._queue.withdraw_folder(os.fspath(folder.path), directory)
        return found

    def health(self, folder: FolderConfig) -> Health:
        """Whether the settings in the folder are right."""
        return self._inherited_in(folder).health()

    def left(self, folder: FolderConfig) -> None:
        """Hear that the folder is not watched any more, or not with these settings: what waits of it is taken back."""
        self._inherited.pop(os.fspath(folder.path), None)
        with self._left_lock:
            self._left.append(folder)
            self._queue.withdraw_folder(os.fspath(folder.path), os.fspath(folder.path))

    def lacking(self, folder: FolderConfig, listing: Listing) -> Iterator[str]:
        """The images of one directory that need something now, told by its names and one look into the ledger."""
        remove_left_behind(listing.directory, listing.names)
        is_first = listing.directory not in self._seen
        if is_first:
            self._seen.add(listing.directory)
            self._ledger.forget_missing(listing.directory, listing.names)
        here = self._settings(folder, listing.directory, is_first=is_first)
        if here is None:
            return
        if here.filters:
            listing = replace(listing, images=tuple(each for each in listing.images if here.takes(listing.path(each))))
        is_left = leaves_existing(here.outputs, here.overwrite)
        known = self._ledger.troubled if is_left else self._ledger.known
        entries = known(listing.directory)
        self._forget_gone(listing, entries)
        by_stem: dict[str, list[str]] = defaultdict(list)
        for name in listing.images:
            by_stem[sidecars.stem_of(name)].append(name)
        self._note_namesakes(listing.directory, by_stem)
        for names in by_stem.values():
            owner = names[0] if len(names) == 1 else self._owner(listing.directory, names)
            for name in names:
                if self._lacks(here, listing, name, entries.get(name), is_owner=name == owner):
                    yield name

    def scanned(self, folder: FolderConfig) -> None:
        """Drop the failures of directories that are gone, which no listing tells of.

        Where the folder is empty, it may be an empty mount point: then nothing is dropped.
        """
        below = [each.path for each in self._ledger.failures() if is_inside(each.path, os.fspath(folder.path))]
        gone = {directory for directory in set(map(os.path.dirname, below)) if _is_gone(directory)}
        if gone and os.listdir(folder.path):
            for path in below:
                if os.path.dirname(path) in gone:
                    self._ledger.settled(path)

    def needs(self, folder: FolderConfig, path: str) -> bool:
        """Tell whether an image needs something that is not being made already.

        An image that has all of its sidecars, by whomever, leaves the list of failures.
        """
        if self._queue.holds(path):
            return False
        if sidecars.images_beside(path):
            with self._scanned_lock:
                self._scanned.pop(os.path.dirname(path), None)  # It may have come since.
        here = self._settings(folder, os.path.dirname(path))
        if here is None or not here.takes(path):
            return False
        entry = self._ledger.entry(path)
        if self._other_owner(here, path) is None and not self._needs.due(path, here.outputs, here.overwrite, entry):
            self._settle(path, entry)
            return False
        return self._needs.may_try(entry.failure if entry is not None else None, path)

    def submit(self, folder: FolderConfig, ready: Iterable[tuple[str, Stamp]]) -> None:
        """Queue images for what they need, or list them with the reason why they cannot have that.

        Those of one directory that follow each other are asked for its settings once. What changes meanwhile is told
        like any other change, and what waits is taken back then.
        """
        asked, here = None, None
        for path, stamp in ready:
            directory = os.path.dirname(path)
            if directory != asked:
                asked, here = directory, self._settings(folder, directory)
            if here is not None and here.takes(path):
                self._submit(folder, here, path, stamp)

    def _submit(self, folder: FolderConfig, here: Settings, path: str, stamp: Stamp) -> None:
        entry = self._ledger.entry(path)
        if self._queue.holds(path) or not self._needs.may_try(entry.failure if entry is not None else None, path):
            return
        outputs = self._needs.due(path, here.outputs, here.overwrite, entry)
        owner = self._other_owner(here, path)
        if owner is None and not outputs:
            owner = sidecars.owner_in_another_case(path, here.outputs)
        if owner is not None:
            self._refuse(path, stamp, entry, shared_sidecar(path, owner, here.outputs))
            return
        try:
            sidecars.check_names(path, outputs)
            if outputs:
                is_suspect = entry is not None and entry.left > 0
                image = Image(path, outputs, stamp, here.overwrite, is_suspect, os.fspath(folder.path))
                self._put(folder, Job(Kind.FOLDER, path, asks_of(outputs), image))
        except SidecarError as error:
            self._refuse(path, stamp, entry, error)
        except Stopping:
            log.debug("%s: found while stopping; the next start takes it up", printable(path))

    def _put(self, folder: FolderConfig, job: Job) -> None:
        """Queue a job, unless the folder is not watched with these very settings any more."""
        with self._left_lock:
            if not any(each is folder for each in self._left):
                self._queue.put(job)

    def _inherited_in(self, folder: FolderConfig) -> Inherited:
        path = os.fspath(folder.path)
        return self._inherited.get(path) or self._inherited.setdefault(path, Inherited(path))

    def _settings(self, folder: FolderConfig, directory: str, *, is_first: bool = False) -> Settings | None:
        """What counts in a directory; None while that is wrong: its pictures wait, and are found once it is mended."""
        try:
            return self._inherited_in(folder).settings(Settings(folder), directory, is_first=is_first)
        except ConfigError as error:
            log.debug("%s: waits: %s", printable(directory), printable(str(error)))
            return None

    def _lacks(self, here: Settings, listing: Listing, name: str, entry: Entry | None, *, is_owner: bool) -> bool:
        path = listing.path(name)
        prefix = len(path) - len(name)
        if is_owner and not self._needs.due(
            path, here.outputs, here.overwrite, entry, lambda sidecar: listing.has(sidecar[prefix:])
        ):
            self._settle(path, entry)
            return False
        if not is_owner and entry is not None and entry.failure is not None:
            return entry.failure.error != "SharedSidecar"
        failure = entry.failure if entry is not None else None
        return self._needs.may_try(failure, path) and not self._queue.holds(path)

    def _settle(self, path: str, entry: Entry | None) -> None:
        """Nothing is missing: whatever was wrong with it is not any more."""
        if entry is not None and (entry.failure is not None or entry.left) and not self._queue.holds(path):
            self._ledger.settled(path)

    def _refuse(self, path: str, stamp: Stamp, entry: Entry | None, error: SidecarError) -> None:
        reason = printable(str(error))
        if entry is None or entry.failure is None or entry.failure.reason != reason:
            log.warning("%s: %s", printable(path), reason)
            self._ledger.settled(path)
            self._ledger.failed(path, reason, stamp, error=type(error).__name__)

    def _owner(self, directory: str, names: list[str]) -> str:
        return owner_of(names, lambda name: self._ledger.entry(os.path.join(directory, name)))

    def _other_owner(self, here: Settings, path: str) -> str | None:
        """The picture beside this one that has the sidecars which both would write, or None."""
        directory, name = os.path.split(path)
        beside = self._images_beside(here, directory, name)
        owner = self._owner(directory, [name, *beside]) if beside else name
        return None if owner == name else owner

    def _images_beside(self, here: Settings, directory: str, name: str) -> list[str]:
        scanned_s, namesakes = self._scanned.get(directory, (-NAMESAKES_S, {}))
        if self._clock() - scanned_s < NAMESAKES_S:
            return [other for other in namesakes.get(sidecars.stem_of(name), []) if other != name]
        beside = sidecars.images_beside(os.path.join(directory, name))
        paths = {other: os.path.join(directory, other) for other in beside}
        return [other for other, path in paths.items() if is_wanted(here.folder, path) and here.takes(path)]

    def _note_namesakes(self, directory: str, by_stem: dict[str, list[str]]) -> None:
        now_s = self._clock()
        with self._scanned_lock:
            self._scanned.pop(directory, None)
            self._scanned[directory] = (now_s, {stem: names for stem, names in by_stem.items() if len(names) > 1})
            # The oldest come first: only those that are dropped are looked at, of thousands that a scan leaves here.
            while now_s - next(iter(self._scanned.values()))[0] >= NAMESAKES_S:
                del self._scanned[next(iter(self._scanned))]

    def _forget_gone(self, listing: Listing, entries: dict[str, Entry]) -> None:
        """What failed and is gone, or is not taken any more, is not missed."""
        taken = set(listing.images)
        for name, entry in entries.items():
            if entry.failure is not None and name not in taken:
                self._ledger.settled(listing.path(name))


def _is_gone(directory: str) -> bool:
    """Tell whether there is no such directory; one that cannot be asked about may be there."""
    try:
        os.lstat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False
