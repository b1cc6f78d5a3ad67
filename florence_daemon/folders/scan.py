"""Walk a folder for pictures, one directory at a time, never leaving the folder and never opening a file."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

from florence_daemon.config import FolderConfig
from florence_daemon.folders.names import is_behind_link, is_directory_name, is_image_name, is_taken


@dataclass(frozen=True)
class Listing:
    """What one directory held when it was read; with these names nobody needs to ask the disk for each.

    images: names of the pictures that the folder's settings take, in their order.
    names: every name in the directory, hidden ones and directories too.
    """

    directory: str
    images: tuple[str, ...]
    names: frozenset[str]

    def path(self, name: str) -> str:
        """The path of one of the names."""
        return os.path.join(self.directory, name)

    def has(self, name: str) -> bool:
        """Tell whether there is something of this name, in which Windows ignores case."""
        return name in self.names or (os.name == "nt" and os.path.normcase(name) in self._folded)

    @cached_property
    def _folded(self) -> frozenset[str]:
        return frozenset(map(os.path.normcase, self.names))


def list_directories(
    folder: FolderConfig,
    start: str | None = None,
    on_error: Callable[[OSError], None] = lambda error: None,
    leave_out: Collection[str] = (),
) -> Iterator[Listing]:
    """Yield what each directory below `start` (the folder itself unless given) holds, in the order of their names.

    Each is read when it is asked for, so a million pictures are never in memory at once. Symbolic links are not
    followed, neither to files nor to directories: a link could lead out of the folder or in a circle. Directories of
    `leave_out` and those that names.py ignores are not read; one that cannot be read goes to `on_error`.
    """
    pending = [os.fspath(start if start is not None else folder.path)]
    while pending:
        directory = pending.pop()
        if is_behind_link(os.fspath(folder.path), os.path.join(directory, "")):
            continue  # Since its parent was read it has been replaced.
        try:
            listing, deeper = _list(folder, directory)
        except OSError as error:
            on_error(error)
            continue
        yield listing
        pending.extend(path for path in reversed(deeper) if path not in leave_out)


def _list(folder: FolderConfig, directory: str) -> tuple[Listing, list[str]]:
    """Read one directory; return it and the directories in it that are looked into. One system call per 32 KB."""
    names: list[str] = []
    images: list[str] = []
    deeper: list[str] = []
    relative = os.path.relpath(directory, folder.path)
    prefix = "" if relative == os.curdir else relative + os.sep
    with os.scandir(directory) as found:
        for entry in found:
            name = entry.name
            names.append(name)
            if entry.is_dir(follow_symlinks=False):
                if folder.recursive and is_directory_name(name) and not _is_junction(entry):
                    deeper.append(entry.path)
            elif is_image_name(name) and entry.is_file(follow_symlinks=False) and is_taken(folder, prefix + name, name):
                images.append(name)
    return Listing(directory, tuple(sorted(images)), frozenset(names)), sorted(deeper)


def _is_junction(entry: os.DirEntry[str]) -> bool:
    """On Windows a junction is a link to a directory, though not a symbolic one."""
    if sys.platform != "win32":
        return False
    return entry.stat(follow_symlinks=False).st_reparse_tag == stat.IO_REPARSE_TAG_MOUNT_POINT


def find_images(
    folder: FolderConfig, start: str | None = None, on_error: Callable[[OSError], None] = lambda error: None
) -> Iterator[str]:
    """Yield the path of each picture below `start`; see `list_directories`."""
    for listing in list_directories(folder, start, on_error):
        for name in listing.images:
            yield listing.path(name)
