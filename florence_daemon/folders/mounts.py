"""Where a folder is mounted: whether it is still the same directory, and whether its file system sends events."""

from __future__ import annotations

import ctypes
import ntpath
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

# Linux lists them here; elsewhere no mount is known, and a folder is told by its device and inode alone.
MOUNTS = "/proc/self/mountinfo"
# What GetDriveTypeW says of a drive letter that stands for a network share.
DRIVE_REMOTE = 4
# File systems that others write to as well, behind this kernel's back. FUSE ones are among them (sshfs, rclone,
# bindfs, mergerfs), except for fuseblk: that is a local disk.
WITHOUT_EVENTS = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "virtiofs",
        "ceph",
        "afs",
        "lustre",
        "gpfs",
        "beegfs",
        "ocfs2",
        "gfs2",
        "glusterfs",
        "davfs",
        "coda",
        "vboxsf",
        "vmhgfs",
        "prl_fs",
        "fuse",
    ]
)


@dataclass(frozen=True)
class Mount:
    """A line of the table of mounts."""

    number: int
    device: str
    point: str
    kind: str

    @property
    def sends_events(self) -> bool:
        """Tell whether what others write there is seen by inotify."""
        return self.kind not in WITHOUT_EVENTS and not self.kind.startswith("fuse.")


@dataclass(frozen=True)
class Place:
    """Where a folder is. Equal places are the same directory, with the same file systems mounted in it.

    own: the mount that holds the folder, None where that cannot be told. below: those somewhere inside it.
    """

    device: int
    inode: int
    own: Mount | None
    below: tuple[Mount, ...]

    def silent_kind(self) -> str:
        """The kind of the file system that sends no events, the folder's own first; empty when all of them do."""
        mounts = (self.own, *self.below) if self.own is not None else self.below
        return next((mount.kind for mount in mounts if not mount.sends_events), "")


def place_of(path: str, mounts: str = MOUNTS) -> Place:
    """Look where the folder is. Raises: OSError when it is not there or cannot be asked."""
    status = os.stat(path)
    if not os.path.isdir(path):
        raise NotADirectoryError(20, "this is not a folder", path)
    if sys.platform == "win32":
        # A server tells of changes on shares, but not of all of them and not every server does.
        own = Mount(0, "", os.path.splitdrive(path)[0], "cifs") if is_share(path) else None
        return Place(status.st_dev, status.st_ino, own, ())
    table = read_mounts(mounts)
    real = os.path.realpath(path)
    inside = os.path.join(real, "")
    below = tuple(mount for mount in table if mount.point.startswith(inside))
    return Place(status.st_dev, status.st_ino, mount_of(real, table), below)


def is_share(path: str, drive_type: Callable[[str], int] | None = None) -> bool:
    r"""Tell whether Windows has this path from a server: `\\server\share`, or a drive letter that stands for one."""
    root = ntpath.splitdrive(path)[0] + "\\"
    return root.startswith("\\\\") or (drive_type or _drive_type)(root) == DRIVE_REMOTE


def _drive_type(root: str) -> int:
    if sys.platform != "win32":
        return 0
    return int(ctypes.windll.kernel32.GetDriveTypeW(root))


def mount_of(path: str, table: list[Mount]) -> Mount | None:
    """The mount that holds `path`: the innermost, and of several at one place the last."""
    holding = [mount for mount in table if f"{path}/".startswith(os.path.join(mount.point, ""))]
    return max(reversed(holding), key=lambda mount: len(mount.point), default=None)


def read_mounts(path: str = MOUNTS) -> list[Mount]:
    """Read the table of mounts; empty where the system has none."""
    try:
        with open(path, "rb") as file:
            lines = os.fsdecode(file.read()).split("\n")
    except OSError:
        return []
    return [_parse(line) for line in lines if " - " in line]


def _parse(line: str) -> Mount:
    """`36 35 98:0 /dir /mnt rw,noatime master:1 - ext3 /dev/root rw`: number, parent, device, root, point … - kind."""
    fields = line.split(" ")
    point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
    return Mount(int(fields[0]), fields[2], point, fields[fields.index("-") + 1])
