"""Write a file whole or not at all, in the very directory that was looked at, wherever its path leads by then."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from florence_daemon.folders.settle import Stamp

# A file that is being written is called so; one that a dead process left is removed when it is seen.
PREFIX = ".florence-"
# Nobody can guess it, and a file that a person calls .florence-something is not one.
UNFINISHED = re.compile(rf"{re.escape(PREFIX)}[0-9a-f]{{12}}-[0-9]+")
# Where it cannot be told whether its process lives, it counts as left after so long.
OLD_S = 3600.0
# What this process is writing now: by a clock that was set forward an hour, all of it is old.
_in_work: set[str] = set()
# Windows moves and removes no file that a scanner or a viewer has open, which is mostly for a moment: seconds between
# tries, and the errors that mean this (access denied, sharing violation, lock violation).
PATIENCE_S = (0.02, 0.05, 0.1, 0.2, 0.4)
HELD_OPEN = (5, 32, 33)
# To open a pipe waits for who writes to it, and a link may lead to a file that has no end.
CAREFULLY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)


class NameTaken(FileExistsError):
    """A file of this name is there, and may not be replaced."""


class Directory:
    """A directory held open. On Linux and macOS all goes through its handle: after an unmount, say, nothing is written
    below the empty mount point, since this is not the directory that held the picture. Windows keeps what is open.
    """

    def __init__(self, path: str, root: str | None = None) -> None:
        """root: a folder above it, from which no symbolic link is followed on the way: it would lead out.

        Raises: OSError when it is gone, or behind a link.
        """
        self.path = path
        self._handle = None if sys.platform == "win32" else _open_below(path if root is None else root, path)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def stamp_of(self, name: str) -> Stamp | None:
        """The stamp of a regular file in it, else None."""
        try:
            return Stamp.of(os.stat(self._at(name), dir_fd=self._handle, follow_symlinks=False))
        except (OSError, ValueError):
            return None

    def has(self, name: str) -> bool:
        """Tell whether there is a regular file of this name in it."""
        return self.stamp_of(name) is not None

    def digest_of(self, name: str) -> bytes | None:
        """What stands for the bytes of a regular file in it; None when it cannot be read."""
        return content_of(self._at(name), self._handle)

    def read(self, name: str, at_most_bytes: int) -> bytes | None:
        """The bytes of a regular file in it; None when it is not there.

        Raises: OSError, also for a link, a pipe and the like, and a larger file.
        """
        try:
            with open_regular(self._at(name), self._handle) as file:
                content = file.read(at_most_bytes + 1)
        except FileNotFoundError:
            return None
        if len(content) > at_most_bytes:
            raise OSError(errno.EFBIG, f"is larger than {at_most_bytes:,} bytes")
        return content

    def write(self, name: str, content: bytes, may_replace: Callable[[], bool]) -> bool:
        """Write a file; False when `name` exists and may not be replaced. Raises: OSError."""
        try:
            with self.writing(name, may_replace) as file:
                file.write(content)
        except NameTaken:
            return False
        return True

    @contextlib.contextmanager
    def writing(self, name: str, may_replace: Callable[[], bool]) -> Iterator[BinaryIO]:
        """Give a hidden file to write into; when the block ends well it is synced and moved into place.

        A crash at any moment leaves the old file or the new one, never part of one.
        Raises: NameTaken when `name` exists and may not be replaced; OSError.
        """
        temporary = unfinished_name()
        _in_work.add(temporary)
        try:
            with open(self._at(temporary), "xb", opener=self._open) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if not self._move_new(temporary, name):
                if not may_replace():
                    raise NameTaken(errno.EEXIST, os.strerror(errno.EEXIST), name)
                self._replace(temporary, name)
        finally:
            with contextlib.suppress(OSError):
                patiently(partial(os.unlink, self._at(temporary), dir_fd=self._handle))
            _in_work.discard(temporary)
        if self._handle is not None:
            os.fsync(self._handle)

    def rewrite(
        self,
        name: str,
        change: Callable[[BinaryIO, BinaryIO], bool],
        may_replace: Callable[[Stamp, bytes], bool],
    ) -> bool:
        """Put another version of a file in its place, whole and synced, with its mode and as far as may be its owner.

        change: reads the old one and writes the new one; false leaves all as it is. may_replace: told the new one's
        stamp and digest just before it takes the name; false drops it. Raises: OSError, and what these raise.
        """
        temporary = unfinished_name()
        _in_work.add(temporary)
        try:
            with (
                open_regular(self._at(name), self._handle) as old,
                open(self._at(temporary), "x+b", opener=self._open) as new,
            ):
                if not change(old, new):
                    return False
                _take_over(old.fileno(), new.fileno())
                new.flush()
                os.fsync(new.fileno())
            stamp, digest = self.stamp_of(temporary), self.digest_of(temporary)
            if stamp is None or digest is None:
                raise FileNotFoundError(errno.ENOENT, "its new version went away")
            if not may_replace(stamp, digest):
                return False
            self._replace(temporary, name)
        finally:
            with contextlib.suppress(OSError):
                patiently(partial(os.unlink, self._at(temporary), dir_fd=self._handle))
            _in_work.discard(temporary)
        if self._handle is not None:
            os.fsync(self._handle)
        return True

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(name), dir_fd=self._handle)

    def _move_new(self, temporary: str, name: str) -> bool:
        """Give the file its name unless that is taken: unlike a rename, a hard link fails where a file exists."""
        try:
            os.link(self._at(temporary), self._at(name), src_dir_fd=self._handle, dst_dir_fd=self._handle)
        except FileExistsError:
            return False
        except OSError:
            # File systems without hard links (exFAT, some shares): the check is a moment older than the rename.
            if self._exists(name):
                return False
            self._replace(temporary, name)
        return True

    def _replace(self, temporary: str, name: str) -> None:
        places = self._at(temporary), self._at(name)
        patiently(partial(os.replace, *places, src_dir_fd=self._handle, dst_dir_fd=self._handle))

    def _exists(self, name: str) -> bool:
        try:
            os.stat(self._at(name), dir_fd=self._handle, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _open(self, path: str, flags: int) -> int:
        return os.open(path, flags, 0o666, dir_fd=self._handle)

    def _at(self, name: str) -> str:
        """The name itself where it counts from the handle, else its path."""
        return name if self._handle is not None else os.path.join(self.path, name)


def content_of(path: str, directory: int | None = None) -> bytes | None:
    """The digest of a regular file's bytes; None when it cannot be read, or is a link, a pipe or the like.

    directory: the handle of the directory from which `path` counts.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open_regular(path, directory) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except (OSError, ValueError):
        return None
    return digest.digest()


def open_regular(path: str, directory: int | None = None) -> BinaryIO:
    """Open a file to read it, but no link, pipe or the like. Raises: OSError."""

    def open_it(path: str, flags: int) -> int:
        return os.open(path, flags | CAREFULLY, dir_fd=directory)

    file = open(path, "rb", opener=open_it)  # noqa: SIM115 - whoever asked for it closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is not a regular file")
    return file


def _take_over(old: int, new: int) -> None:
    """Give a new version of a file what the old one has besides its content; who may not do so leaves it out."""
    state = os.fstat(old)
    if sys.platform == "win32":
        return
    # Only root gives files away; to a group that they are in, all may, so that its members can read it still.
    for owner in (state.st_uid, -1):
        with contextlib.suppress(OSError):
            os.fchown(new, owner, state.st_gid)
            break
    # But for the bits that let whoever runs a file become its owner: that is another than before where chown failed.
    os.fchmod(new, state.st_mode & 0o777)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # Some shares have no attributes, and say so when they are asked.
            for attribute in os.listxattr(old):
                with contextlib.suppress(OSError):
                    os.setxattr(new, attribute, os.getxattr(old, attribute))


def _open_below(root: str, path: str) -> int:
    """Enter the directories from `root` to `path` one by one, none of them by a link."""
    handle = os.open(root or ".", os.O_RDONLY | os.O_DIRECTORY)
    for name in os.path.relpath(path or ".", root or ".").split(os.sep):
        above = handle
        try:
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
        finally:
            os.close(above)
    return handle


def patiently(do: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> None:
    """Do it, on Windows again for a second while another program has the file open. Raises: what `do` raises."""
    for pause_s in PATIENCE_S:
        try:
            return do()
        except OSError as error:
            if getattr(error, "winerror", None) not in HELD_OPEN:
                raise
        sleep(pause_s)
    return do()


def unfinished_name() -> str:
    """A new name for a file of this process that has no content yet. Open it with "x", which follows no link."""
    return f"{PREFIX}{secrets.token_hex(6)}-{os.getpid()}"


def remove_left_behind(directory: str, names: frozenset[str]) -> None:
    """Remove the unfinished files of processes that are dead."""
    for name in names:
        if name.startswith(PREFIX) and UNFINISHED.fullmatch(name):
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                if _is_left(name, path):
                    os.unlink(path)


def _is_left(name: str, path: str) -> bool:
    if name in _in_work:
        return False
    if sys.platform != "win32":
        try:
            os.kill(int(name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            pass
    return abs(time.time() - os.lstat(path).st_mtime) > OLD_S
