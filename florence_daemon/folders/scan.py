"""Walk a folder for pictures: which names count, in what order, never leaving the folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import PurePath

from florence_daemon.config import IMAGE_SUFFIXES, FolderConfig

# What browsers, editors and copy programs call a file that is not whole yet. Names that end in no picture's suffix
# (a.jpg.part, a.jpg.crdownload) never count; this is for those that do.
TEMPORARY_NAMES = (".*", "~*", "*.tmp.*", "*.part.*", "*.crdownload.*")


def is_image_name(name: str) -> bool:
    """Tell whether a file of this name is taken for a picture."""
    if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
        return False
    return not any(fnmatch(name, pattern) for pattern in TEMPORARY_NAMES)


def is_wanted(folder: FolderConfig, path: str) -> bool:
    """Tell whether `path`, somewhere below the folder, is a picture that the folder's settings take."""
    relative = os.path.relpath(path, folder.path)
    parents, name = os.path.split(relative)
    if not is_image_name(name):
        return False
    if parents and (not folder.recursive or any(part.startswith(".") for part in PurePath(parents).parts)):
        return False
    relative = relative.replace(os.sep, "/")
    if any(_matches(relative, name, pattern) for pattern in folder.exclude):
        return False
    return not folder.include or any(_matches(relative, name, pattern) for pattern in folder.include)


def _matches(relative: str, name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(relative, pattern)


def find_images(
    folder: FolderConfig, start: str | None = None, on_error: Callable[[OSError], None] = lambda error: None
) -> Iterator[str]:
    """Yield the pictures below `start` (the folder itself unless given), each directory in the order of its names.

    Symbolic links are not followed, neither to files nor to directories: a link could lead out of the folder or in
    a circle. Directories that begin with a dot are left out. A directory that cannot be read goes to `on_error`.
    """
    pending = [os.fspath(start if start is not None else folder.path)]
    while pending:
        try:
            with os.scandir(pending.pop()) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            on_error(error)
            continue
        deeper = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if folder.recursive and not entry.name.startswith("."):
                    deeper.append(entry.path)
            elif entry.is_file(follow_symlinks=False) and is_wanted(folder, entry.path):
                yield entry.path
        pending.extend(reversed(deeper))
