"""How much memory there is, how much of it is free, and how many questions fit into that side by side."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Free memory that questions may take: the rest is for the vision part, urgent questions beyond the batch, and others.
SHARE = 0.5
# Answers are seldom longer than this many tokens; a batch of longer ones takes what is left of the other half.
USUAL_TOKENS = 512
# A step for eight questions costs little more than for one; beyond, a CPU is busy and each question only waits longer.
CPU_BATCH = 8
GPU_BATCH = 64
# glibc's mallopt: blocks from this size on get pages of their own, which go back when they are freed.
_M_MMAP_THRESHOLD = -3
_OWN_PAGES_BYTES = 2**20


def choose_batch(wanted: int, device: str, free_bytes: int | None, question_bytes: int) -> int:
    """Choose how many questions are decoded side by side: `wanted`, or, for 0, as many as fit. At least one."""
    if wanted > 0:
        return wanted
    most = GPU_BATCH if device.startswith("cuda") else CPU_BATCH
    if free_bytes is None:
        return min(most, CPU_BATCH)
    return max(1, min(most, int(SHARE * free_bytes) // max(1, question_bytes)))


def return_freed_blocks() -> None:
    """Let large blocks go back to the system when they are freed.

    By default glibc keeps them once a block of 32 MB was freed: the engine of base then holds 90 MB more than it uses.
    Does nothing elsewhere. Not for torch, which asks for its large blocks anew at every layer: 0.8 s of each picture.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)


def free_ram_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Say how much memory this process may take, by the machine and by its control groups; None where Linux is not."""
    free = _meminfo(proc, "MemAvailable")
    return None if free is None else max(0, min([free, *(group.left() for group in _groups(proc, cgroups))]))


def all_ram_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Say how much memory there is for this process and its kin, free or not; None where Linux is not."""
    total = _meminfo(proc, "MemTotal")
    return None if total is None else min([total, *(group.limit for group in _groups(proc, cgroups))])


@dataclass(frozen=True)
class _Group:
    """A control group that has a limit. Files that were read count as used, and are let go of when memory is wanted."""

    limit: int
    used: int
    read_files: int

    def left(self) -> int:
        return self.limit - self.used + self.read_files


def _meminfo(proc: Path, name: str) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        return int(lines[name].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _groups(proc: Path, cgroups: Path) -> Iterator[_Group]:
    """The control groups above this process, version 2 or 1, that have a limit."""
    try:
        entries = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except (OSError, ValueError):
        return
    for number, controllers, path in entries:
        if number == "0":
            yield from _groups_above(cgroups, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            yield from _groups_above(cgroups / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _groups_above(root: Path, path: str, limit_name: str, used_name: str) -> Iterator[_Group]:
    """The group and its parents, up to `root`. In a container the path can lie above what is mounted."""
    group = root / path.strip("/")
    for directory in dict.fromkeys([group, *group.parents, root]):
        if directory != root and root not in directory.parents:
            continue
        try:
            limit = int((directory / limit_name).read_text())
            used = int((directory / used_name).read_text())
            statistics = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # No such group here, or `max`: no limit.
            continue
        yield _Group(limit, used, int(statistics.get("inactive_file", 0)))
