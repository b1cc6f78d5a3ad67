"""Who holds a claim, and does that process still live? A locked file tells: the system lets go of it at any death."""

from __future__ import annotations

import contextlib
import secrets
import sys
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

SUFFIX = ".holder"


class Holder:
    """This process, as others that share a directory know it. A process number would not do: they are given again."""

    def __init__(self, directory: Path) -> None:
        """Raises: OSError when the directory cannot be written."""
        while True:
            self.name = secrets.token_hex(8)
            self._path = directory / f"{self.name}{SUFFIX}"
            self._file = self._path.open("wb")
            # Another process that looks who lives may have met the file before it was locked.
            if _lock(self._file) and self._path.exists():
                return
            self._file.close()

    def is_there(self) -> bool:
        """Tell whether others can see this process still: the directory may have been emptied."""
        return self._path.exists()

    def close(self) -> None:
        """Let go, which makes this process count as gone."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def living_holders(directory: Path) -> set[str]:
    """The names of the processes that live; what the dead left behind is removed."""
    living = set()
    for path in directory.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            if _is_locked(path):
                living.add(path.stem)
    return living


def _is_locked(path: Path) -> bool:
    with path.open("r+b") as file:
        if not _lock(file):
            return True
        with contextlib.suppress(OSError):
            path.unlink()  # While it is locked: else a process that has just made it would lose it.
    with contextlib.suppress(OSError):
        path.unlink()  # Windows removes no open file.
    return False


def _lock(file: IO[bytes]) -> bool:
    """Lock a file's first byte, which nobody ever writes; False when another process has it."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
