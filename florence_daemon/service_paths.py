"""Which directories a sandboxed service has to be given, so that it can write beside the pictures and find itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

# What ProtectHome and PrivateTmp put out of a service's sight.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not used
# Too much to be given for one folder in it.
TOO_WIDE = frozenset(("/", "/etc", "/home", "/root", "/run", "/run/user", "/tmp", "/usr", "/var", "/var/tmp"))  # noqa: S108


def holders(
    folder: str, mounts: Collection[str], exists: Callable[[str], bool], real: Callable[[str], str]
) -> set[str]:
    """Name the directories to give to a service that writes to `folder`, itself or what it is a link to.

    To give a directory pins it: were it the mount point, a disk that is mounted again would not be seen, nor would a
    folder that was made again. So it is the parent of the mount, or else of the folder, unless that is too much.
    """
    return {_holder(path, mounts, exists) for path in (folder, real(folder))}


def _holder(folder: str, mounts: Collection[str], exists: Callable[[str], bool]) -> str:
    above = [str(path) for path in Path(folder).parents]
    mount = next((path for path in (folder, *above) if path in mounts and path != "/"), None)
    there = next((path for path in above if exists(path)), "/")
    for candidate in ([os.path.dirname(mount)] if mount else []) + [there]:
        if not is_too_wide(candidate):
            return candidate
    return folder


def is_too_wide(directory: str) -> bool:
    """Whether this is the system, or somebody's whole home."""
    return directory in TOO_WIDE or os.path.dirname(directory) in ("/home", "/run/user")


def is_hidden(path: str) -> bool:
    """Whether a service does not see this unless it is shown."""
    return any(path == hidden or path.startswith(hidden + "/") for hidden in HIDDEN)


def outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """Leave out what is inside another of them."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(outer.rstrip("/") + "/") for outer in kept):
            kept.append(path)
    return tuple(kept)


def mount_points(proc: Path = Path("/proc"), fstab: Path = Path("/etc/fstab")) -> frozenset[str]:
    """Every mount point, also of what is in fstab and not mounted now."""
    found = set()
    for file, column in ((proc / "self" / "mountinfo", 4), (fstab, 1)):
        try:
            lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError:
            continue
        rows = [line.split() for line in lines if not line.lstrip().startswith("#")]
        found |= {_unescaped(row[column]) for row in rows if len(row) > column}
    return frozenset(path for path in found if path.startswith("/"))


def _unescaped(field: str) -> str:
    r"""Both files write a space as \040."""
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, letter)
    return field
