"""Where a data set goes: a file or a folder that appears whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from florence_daemon.errors import DatasetError, UsageError
from florence_daemon.folders.atomic import Directory, open_regular, unfinished_name

Placing = Literal["copy", "hardlink", "symlink"]


@contextmanager
def new_file(path: Path, overwrite: bool = False) -> Iterator[IO[bytes]]:
    """Give a file to write into; it gets its name when the block ends well, and is gone when it does not.

    Raises: UsageError when there is one already that must not be replaced; DatasetError.
    """
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"--to {path}: there is such a file already; name another, or say --overwrite")
    with _explained(path):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with (
            Directory(str(path.absolute().parent)) as directory,
            directory.writing(path.name, lambda: overwrite) as file,
        ):
            yield file


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a hidden folder beside `path` to fill; it gets that name when the block ends well, and is gone otherwise.

    Raises: UsageError when something is there already; DatasetError.
    """
    if os.path.lexists(path) and not _is_empty_folder(path):
        raise UsageError(f"--to {path}: there is something already; name a new folder, or an empty one")
    path = path.absolute()
    hidden = path.parent / unfinished_name()
    with _explained(path):
        hidden.mkdir(parents=True)
        try:
            yield hidden
            if path.is_dir():  # empty, or this fails
                path.rmdir()
            hidden.rename(path)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{path}: cannot be written: {error.strerror or error}") from error


def place_picture(source: str, target: Path, how: Placing) -> None:
    """Put a picture where the data set wants it. Where no hard link can be made, as to another disk, it is copied.

    Raises: OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "symlink":
        os.symlink(os.path.abspath(source), target)
        return
    if how == "hardlink":
        with contextlib.suppress(OSError):
            os.link(source, target, follow_symlinks=False)
            return
    with open_regular(source) as file, open(target, "xb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
