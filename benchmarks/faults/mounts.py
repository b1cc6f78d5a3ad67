"""File systems of a daemon's own: small, read-only, forbidden, blind to case; seen from outside by /proc/PID/root."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from benchmarks.faults.process import DaemonProcess

# The capabilities by which root may do what a file's mode forbids.
PERMISSIONS = "-dac_override,-dac_read_search,-fowner"


def own_mounts(*commands: Sequence[str]) -> list[str]:
    """The prefix of a command that runs in mounts of its own, after `commands` have made them."""
    script = " && ".join([*(shlex.join(command) for command in commands), 'exec "$@"'])
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]


def tmpfs(place: Path, size: str = "1m") -> list[str]:
    """The command that mounts an empty file system of this size."""
    return ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]


def exfat(image: Path, place: Path) -> list[str]:
    """The prefix of a command that sees a FUSE exFAT at `place`, which ignores case and has no hard links.

    It needs a loop device, so real root; `unmount` it in the end, as its server lives on in these mounts.
    """
    loop = f"loop=$(losetup --find --show {shlex.quote(str(image))})"
    mount = f'mount.exfat-fuse "$loop" {shlex.quote(str(place))} && losetup --detach "$loop"'
    return ["unshare", "--mount", "sh", "-c", f'{loop} && {mount} && exec "$@"', "sh"]


def unmount(daemon: DaemonProcess, place: Path) -> None:
    """Take one of its mounts away, though it may have a file of it open, and for good once it has closed that."""
    command = ["nsenter", "-t", str(daemon.pid), "--mount", "umount", "--lazy", str(place)]
    subprocess.run(command, check=True)


def bound_by_modes() -> list[str]:
    """The prefix of a command for which a file's mode counts, also when root runs it."""
    return ["setpriv", "--bounding-set", PERMISSIONS, "--inh-caps", PERMISSIONS]


def seen_by(daemon: DaemonProcess, place: Path) -> Path:
    """A path as the daemon sees it, from outside of its mounts."""
    return Path(f"/proc/{daemon.pid}/root{place}")


def remount(daemon: DaemonProcess, place: Path, options: str) -> None:
    """Change the options of one of its mounts."""
    command = ["nsenter", "-t", str(daemon.pid), "--user", "--preserve-credentials", "--mount"]
    subprocess.run([*command, "mount", "-o", f"remount,{options}", str(place)], check=True)


@cache
def why_no_mounts() -> str | None:
    """Why this machine lets nobody have mounts of their own; None when it does."""
    return _refusal(own_mounts(tmpfs(Path("/mnt"))))


@cache
def why_no_modes() -> str | None:
    """Why this machine cannot make modes count for root."""
    return _refusal(bound_by_modes())


@cache
def why_no_exfat() -> str | None:
    """Why this machine cannot mount exFAT through FUSE."""
    for name in ("mkfs.exfat", "mount.exfat-fuse"):
        if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            return f"{name} is not installed (Debian: exfatprogs, exfat-fuse)"
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists() or not Path("/dev/fuse").exists():
        return "exFAT through FUSE needs root, /dev/loop-control and /dev/fuse"
    return _refusal(["unshare", "--mount"])


def _refusal(prefix: Sequence[str]) -> str | None:
    if shutil.which(prefix[0]) is None:
        return f"{prefix[0]} is not installed"
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"{prefix[0]}: {tried.stderr.strip() or tried.returncode}"
