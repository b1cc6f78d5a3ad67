"""The latest images with their captions, for the page: shown, made small, edited. Only what a watched folder holds.

What the page names is looked up in the ledger first, and opened from its folder down without following a link.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from florence_daemon.errors import FolderBlocked, QueueFull, SidecarChanged, UnknownPath
from florence_daemon.folders.atomic import Directory
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.needs import Makes
from florence_daemon.folders.records import PERSON, Entry, Written, digest_of
from florence_daemon.folders.root import RootWatcher
from florence_daemon.folders.watch import Watcher, is_inside
from florence_daemon.http.pictures import Caption, Shown
from florence_daemon.logs import printable
from florence_daemon.thumbnails import Thumbnails

# Larger sidecars are nobody's caption.
MOST_BYTES = 65536
# Sidecars that are not lines for people.
NOT_CAPTIONS = (".json", ".xmp")
# So many threads look into folders at once: one of those may hang, and the threads that answer are few.
MOST_LOOKING = 4
WAIT_S = 5.0


class Gallery:
    """Looks into the watched folders for the page. Threads may share it."""

    def __init__(self, ledger: Ledger, watcher: Watcher, makes: Makes, thumbnails: Thumbnails) -> None:
        self._ledger = ledger
        self._watcher = watcher
        self._makes = makes
        self._thumbnails = thumbnails
        self._looking = threading.BoundedSemaphore(MOST_LOOKING)

    def latest(self, count: int) -> list[Shown]:
        """Up to `count` images that are there, those captioned last first. Raises: QueueFull."""
        with self._turn():
            return list(self._latest(count))

    def picture(self, path: str) -> Shown:
        """One image. Raises: UnknownPath, FolderBlocked, QueueFull."""
        with self._turn():
            return self._shown(*self._known(path))

    def thumbnail(self, path: str, version: str | None = None) -> tuple[str, bytes | None]:
        """The picture made small, and what stands for it; without its bytes when that is `version`.

        Raises: UnknownPath, FolderBlocked, PictureError, QueueFull.
        """
        with self._turn():
            root, path, _ = self._known(path)
            with _open(path, root) as directory:
                now = _version_of(directory, path)
        return now, None if now == version else self._thumbnails.get(now, root.path, path)

    def edit(self, path: str, ext: str, text: str, version: str | None) -> Shown:
        """Write what a person wrote into a sidecar. version: of what they saw; None when there was none.

        Raises: SidecarChanged when it is not what they saw; UnknownPath, FolderBlocked, QueueFull.
        """
        with self._turn():
            root, path, entry = self._known(path)
            if ext not in _suffixes(root, entry):
                raise UnknownPath(f"{ext}: no such sidecar is written for {printable(path)}")
            name = _sidecar(path, ext)
            with _open(path, root) as directory:
                _write(directory, name, text, version)
                self._note(path, ext, root, entry, directory)
            return self._shown(*self._known(path))

    def _note(self, path: str, ext: str, root: RootWatcher, entry: Entry, directory: Directory) -> None:
        """Have the sidecar count as a person's, made of the picture and the settings as they are."""
        stamp = directory.stamp_of(os.path.basename(path))
        before = next((each for each in reversed(entry.written) if each.suffix == ext), None)
        output = next((each for each in root.folder.outputs if each.ending == ext), None)
        if stamp is None:
            return
        if before is not None and (before.size_bytes, before.mtime_ns) == (stamp.size_bytes, stamp.mtime_ns):
            self._ledger.edited(path, replace(before, digest=PERSON))
        elif before is not None:
            self._ledger.edited(path, Written(ext, PERSON, stamp.size_bytes, stamp.mtime_ns, None, before.making))
        elif output is not None and output.rule(root.folder.overwrite) == "always":
            # All other rules leave a file alone, or add to it, of which the ledger knows nothing.
            making = self._makes(output)
            self._ledger.edited(path, Written(ext, PERSON, stamp.size_bytes, stamp.mtime_ns, None, making))

    def _latest(self, count: int) -> Iterator[Shown]:
        answering = [root for root in self._watcher.roots if self._watcher.health_of(root).state != "failed"]
        for path, captioned_s in self._ledger.latest(lambda path: _root_of(path, answering) is not None, count):
            try:
                yield replace(self._shown(*self._known(path)), captioned_s=captioned_s)
            except (UnknownPath, FolderBlocked):  # It went away, or its folder did.
                continue

    def _known(self, path: str) -> tuple[RootWatcher, str, Entry]:
        """The folder of an image that the ledger knows, and what it knows. Raises: UnknownPath, FolderBlocked."""
        is_plain = os.path.isabs(path) and path == os.path.normpath(path)
        root = _root_of(path, self._watcher.roots) if is_plain else None
        entry = None if root is None else self._ledger.entry(path)
        if root is None or entry is None:
            raise UnknownPath(f"{printable(path)}: no captioned image of a watched folder")
        health = self._watcher.health_of(root)
        if health.state == "failed":
            raise FolderBlocked(f"{printable(root.path)}: {health.reason}")
        return root, path, entry

    def _shown(self, root: RootWatcher, path: str, entry: Entry) -> Shown:
        ours = {(each.suffix, each.digest) for each in entry.written}
        with _open(path, root) as directory:
            version = _version_of(directory, path)
            found = [_caption(directory, path, suffix, ours) for suffix in _suffixes(root, entry)]
        return Shown(path, root.path, tuple(each for each in found if each is not None), version)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._looking.acquire(timeout=WAIT_S):
            raise QueueFull(f"{MOST_LOOKING} looks into the folders do not end; is one of them a share that hangs?")
        try:
            yield
        finally:
            self._looking.release()


def _root_of(path: str, roots: list[RootWatcher]) -> RootWatcher | None:
    """The innermost of the folders that hold `path`."""
    inside = [root for root in roots if is_inside(path, root.path)]
    return max(inside, key=lambda root: len(root.path), default=None)


def _open(path: str, root: RootWatcher) -> Directory:
    """Raises: UnknownPath."""
    try:
        return Directory(os.path.dirname(path), root.path)
    except OSError as error:
        raise UnknownPath(f"{printable(path)}: its folder cannot be opened: {error.strerror}") from None


def _version_of(directory: Directory, path: str) -> str:
    """What stands for the picture as it is now. Raises: UnknownPath."""
    stamp = directory.stamp_of(os.path.basename(path))
    if stamp is None:
        raise UnknownPath(f"{printable(path)}: is not there any more")
    return digest_of(os.fsencode(path) + repr(stamp).encode()).hex()


def _suffixes(root: RootWatcher, entry: Entry) -> list[str]:
    """The endings of an image's captions: those that were written, and those that are to be."""
    found = [*(output.ending for output in root.folder.outputs), *(each.suffix for each in entry.written)]
    return [suffix for suffix in dict.fromkeys(found) if not suffix.lower().endswith(NOT_CAPTIONS)]


def _sidecar(path: str, suffix: str) -> str:
    return os.path.splitext(os.path.basename(path))[0] + suffix


def _caption(directory: Directory, path: str, suffix: str, ours: set[tuple[str, bytes]]) -> Caption | None:
    """The sidecar as it is; None when there is none."""
    try:
        content = directory.read(_sidecar(path, suffix), MOST_BYTES)
        if content is None:
            return None
        text = content.decode("utf-8-sig")
    except OSError as error:
        return Caption(suffix, "", None, True, f"it cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return Caption(suffix, "", None, True, "it is not UTF-8")
    digest = digest_of(content)
    return Caption(suffix, text.rstrip("\r\n"), digest.hex(), (suffix, digest) not in ours)


def _write(directory: Directory, name: str, text: str, version: str | None) -> None:
    """Raises: SidecarChanged, FolderBlocked."""

    def is_as_seen() -> bool:
        digest = directory.digest_of(name)
        return version == (None if digest is None else digest.hex())

    def may_replace() -> bool:
        return version is not None and is_as_seen()

    try:
        is_written = is_as_seen() and directory.write(name, as_file(text), may_replace)
    except OSError as error:
        raise FolderBlocked(f"{printable(name)}: cannot be written: {error.strerror or error}") from None
    if not is_written:
        raise SidecarChanged(f"{printable(name)}: was changed meanwhile by somebody else; nothing was written")


def as_file(text: str) -> bytes:
    """A sidecar's bytes: lines end as on Linux, the last one too."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    return (lines + "\n").encode("utf-8")
