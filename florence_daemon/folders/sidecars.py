"""Sidecars: the files beside an image that hold what was said about it; their names, and their safe writing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from florence_daemon.config_output import IMAGE_SUFFIXES, OutputConfig
from florence_daemon.errors import DiskFull, FolderBlocked, SidecarError, UnfitSidecar
from florence_daemon.folders.atomic import Directory

# No space, or the user's share of it is used up (Windows has no such error).
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
# Not the picture's fault: what is read-only, forbidden or broken now may be mended.
BLOCKED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def sidecar_path(image: str, output: OutputConfig, exists: Callable[[str], bool] = os.path.lexists) -> str:
    """The image's path with its last suffix replaced: `a.b.jpg` and txt give `a.b.txt`.

    XMP is `a.b.jpg.xmp`, as most photo programs call it, unless there is only an `a.b.xmp`, as Lightroom does.
    exists: whether there is a file of this path.
    """
    instead, beside = os.path.splitext(image)[0] + output.ending, image + output.ending
    return instead if not output.is_xmp or (exists(instead) and not exists(beside)) else beside


def stem_of(name: str) -> str:
    """What two pictures of a directory must not have in common, since they would share a sidecar.

    Windows ignores case.
    """
    return os.path.normcase(os.path.splitext(name)[0])


def check_names(image: str, outputs: Iterable[OutputConfig]) -> None:
    """Raises: SidecarError when a sidecar's name is too long for the file system: the picture's may be as it is."""
    for output in outputs:
        if _is_too_long(sidecar_path(image, output)):
            raise SidecarError(f"with {output.ending} its name is too long; give the picture a shorter one")


def _is_too_long(path: str) -> bool:
    if os.name == "nt":  # which only says that there is no such file
        return len(os.path.basename(path).encode("utf-16-le", "surrogatepass")) > 2 * 255
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def images_beside(image: str) -> list[str]:
    """The names of other pictures in the directory that would have the same sidecars: `a.png` beside `a.jpg`.

    Only what the directory lists counts: on a file system that ignores case, `a.JPG` is found but is `a.jpg` itself.
    """
    directory, name = os.path.split(image)
    stem, own = os.path.splitext(name)[0], os.path.normcase(name)
    found = {
        os.path.normcase(other)
        for suffix in IMAGE_SUFFIXES
        for other in (stem + suffix, stem + suffix.upper())
        if os.path.normcase(other) != own and os.path.isfile(os.path.join(directory, other))
    }
    if not found:
        return []
    try:
        return sorted(each for each in os.listdir(directory) if os.path.normcase(each) in found)
    except OSError:
        return []


def owner_in_another_case(image: str, outputs: Iterable[OutputConfig]) -> str | None:
    """The picture that has this one's sidecars where the file system ignores case: `Pair.JPG` beside `pair.png`.

    None where there is no such picture, so also where case counts.
    """
    directory, name = os.path.split(image)
    try:
        listed = os.listdir(directory)
    except OSError:
        return None
    wanted = {os.path.basename(sidecar_path(image, output)) for output in outputs}
    ignoring_case = {each.lower() for each in wanted}
    stems = {os.path.splitext(each)[0] for each in listed if each.lower() in ignoring_case and each not in wanted}
    if not wanted.isdisjoint(listed):
        return None
    images = [each for each in listed if os.path.splitext(each)[1].lower() in IMAGE_SUFFIXES and each != name]
    return min((each for each in images if os.path.splitext(each)[0] in stems), default=None)


def write_all(
    directory: Directory,
    image_name: str,
    contents: Sequence[tuple[OutputConfig, bytes]],
    may_replace: Callable[[str, OutputConfig], bool] = lambda name, output: False,
) -> list[OutputConfig]:
    """Write an image's sidecars; return those that were written.

    Each appears whole or not at all. may_replace: asked about a sidecar that is there already; any other stays as it
    is, even one that appeared a moment ago.
    Raises: SidecarError, which names the path and the reason; FolderBlocked, DiskFull when it may be written later.
    """
    written = []
    for output, content in contents:
        name = sidecar_path(image_name, output, directory.has)
        try:
            if directory.write(name, content, partial(may_replace, name, output)):
                written.append(output)
        except OSError as error:
            raise error_of(os.path.join(directory.path, name), error) from error
    return written


def read_existing(directory: Directory, name: str, at_most_bytes: int) -> bytes | None:
    """What a sidecar holds; None when it is not there. Raises: UnfitSidecar, or SidecarError of a disk that fails."""
    try:
        return directory.read(name, at_most_bytes)
    except OSError as error:
        reason = (
            f"{os.path.join(directory.path, name)}: cannot be read, so nothing was added: {error.strerror or error}"
        )
        raise (SidecarError if error.errno == errno.EIO else UnfitSidecar)(reason) from error


def error_of(path: str, error: OSError) -> SidecarError:
    """What a file that cannot be written means: later, when the disk or the folder is to blame."""
    reason = f"{path}: cannot be written: {error.strerror or error}"
    if error.errno in FULL:
        return DiskFull(reason)
    return FolderBlocked(reason) if error.errno in BLOCKED else SidecarError(reason)
