"""Results in a place of their own: a file for each batch. No picture is in two of them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import secrets
import tarfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from florence_daemon.cluster.addresses import Store, one_line, open_store
from florence_daemon.cluster.forms import FORMS, Record
from florence_daemon.errors import DatasetError
from florence_daemon.folders.atomic import remove_left_behind

log = logging.getLogger(__name__)

# A file that some run wrote: the run's name, and what stands for the pictures of the batch.
PART = re.compile(r"part-([0-9a-f]{8})-[0-9a-f]{16}\.[a-z]+")
# Which run writes here; readers of a folder leave out what begins with a dot.
MARK = ".florence-run"
# Parts that are read at a time: a store answers one in some hundredths of a second, and ten thousand at its leisure.
READERS = 16


class Parts:
    """The files of results at one place, which together are the result; those of one run are called after it."""

    def __init__(self, store: Store, form: str) -> None:
        """form: one of FORMS."""
        self._store = store
        self._name = form
        self._form = FORMS[form]
        self._run = secrets.token_hex(4)

    @property
    def address(self) -> str:
        """Where they are, as people call it."""
        return self._store.address(self._store.path)

    @property
    def holds_pictures(self) -> bool:
        """Whether the pictures' bytes are in them too."""
        return self._form.holds_pictures

    def claim(self) -> None:
        """Make the place, and this run the one that writes there: an earlier one that still goes on may no longer.

        Raises: DatasetError when it cannot be written, or holds results of another form.
        """
        try:
            self._store.make_directory()
            names = self._names()
            self._refuse_others(names)
            if self._store.files.type_name == "local":
                remove_left_behind(self._store.path, names)
            self._store.write(self._place(MARK), self._run.encode())
        except OSError as error:
            raise DatasetError(f"{self.address}: cannot be written: {one_line(error)}") from error

    def release(self) -> None:
        """Leave the place to nobody, unless a later run has it."""
        with contextlib.suppress(OSError):
            if self._is_mine():
                self._store.files.delete_file(self._place(MARK))

    def names(self) -> frozenset[str]:
        """The parts that are there. Raises: DatasetError."""
        try:
            return frozenset(name for name in self._names() if _is_part(name, self._form.ending))
        except OSError as error:
            raise DatasetError(f"{self.address}: cannot be listed: {one_line(error)}") from error

    def done(self) -> frozenset[str]:
        """The pictures that are in some part. Raises: DatasetError for one that cannot be read."""
        return frozenset(path for _, paths in self._read_all(sorted(self.names())) for path in paths)

    def settle(self, names: Sequence[str]) -> frozenset[str]:
        """The pictures in these parts, of which those are removed first that tell of a picture another one tells of.

        Of two the later in `names` goes; what it alone told of counts as not done. Raises: DatasetError.
        """
        seen: set[str] = set()
        for name, paths in self._read_all(names):
            if PART.fullmatch(name) and not seen.isdisjoint(paths):
                self._remove(name)
            else:
                seen.update(paths)
        return frozenset(seen)

    def late(self, before: Collection[str]) -> list[str]:
        """Parts of other runs that were not there before."""
        return sorted(name for name in self.names().difference(before) if not name.startswith(f"part-{self._run}-"))

    def held(self, paths: Collection[str]) -> frozenset[str]:
        """Those of a batch's pictures that are in its file, where that is there. Raises: OSError, DatasetError."""
        name = self._part(paths)
        is_there = self._store.look(self._place(name)).type.name == "File"
        return frozenset(self._read(name)) if is_there else frozenset()

    def write(self, paths: Collection[str], records: Sequence[Record]) -> None:
        """Write the file of a batch whose pictures these are.

        Raises: OSError; DatasetError when another run writes there now.
        """
        if not self._is_mine():
            raise DatasetError(f"{self.address}: another backfill writes there now; wait for it")
        name = self._part(paths)
        key = name.removeprefix("part-").removesuffix(self._form.ending)
        self._store.write(self._place(name), self._form.render(records, key))

    def _is_mine(self) -> bool:
        try:
            return self._store.read(self._place(MARK), 64) == self._run.encode()
        except FileNotFoundError:
            return False

    def _refuse_others(self, names: Collection[str]) -> None:
        others = [each.ending for each in FORMS.values() if each is not self._form]
        other = next((name for name in sorted(names) if any(_is_part(name, ending) for ending in others)), None)
        if other is not None:
            raise DatasetError(f"{self.address}: {other} is of another format; give another place, or that --format")

    def _names(self) -> frozenset[str]:
        return self._store.list(self._store.path)[0].names

    def _part(self, paths: Collection[str]) -> str:
        digest = hashlib.sha256("\n".join(sorted(paths)).encode("utf-8", "surrogateescape"))
        return f"part-{self._run}-{digest.hexdigest()[:16]}{self._form.ending}"

    def _place(self, name: str) -> str:
        return f"{self._store.path}/{name}"

    def _read_all(self, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        with ThreadPoolExecutor(READERS, thread_name_prefix="part") as threads:
            yield from zip(names, threads.map(self._read, names), strict=True)

    def _read(self, name: str) -> list[str]:
        try:
            with self._store.files.open_input_file(self._place(name)) as file:
                return list(self._form.paths(file))
        except (OSError, ValueError, tarfile.TarError, KeyError) as error:
            raise DatasetError(
                f"{self._store.address(self._place(name))}: cannot be read as {self._name}: {error}; "
                f"remove it, and its pictures are captioned again"
            ) from error

    def _remove(self, name: str) -> None:
        log.warning("%s: an earlier run wrote it while another began; removed, since others tell of its pictures", name)
        try:
            self._store.files.delete_file(self._place(name))
        except OSError as error:
            raise DatasetError(f"{self._store.address(self._place(name))}: cannot be removed: {error}") from error


class Turn:
    """A run's turn at a place of results; an earlier run that was killed may still be ending, and one may come."""

    def __init__(self, parts: Parts) -> None:
        """Take the turn. Raises: DatasetError."""
        self._parts = parts
        parts.claim()
        names = parts.names()
        self.done = parts.settle(sorted(names))
        self._before = names

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Give it up, and take out what an earlier run wrote since the beginning. Raises: DatasetError."""
        self._parts.release()
        late = self._parts.late(self._before) if error is None else []
        if late:
            self._parts.settle([*sorted(self._parts.names().difference(late)), *late])


def open_parts(place: str, form: str) -> Parts:
    """The place that a person names: an address, or a folder that every machine sees. Raises: PictureError."""
    return Parts(open_store(place), form)


def _is_part(name: str, ending: str) -> bool:
    return name.startswith("part-") and name.endswith(ending)
