"""Engines of one machine that share it: each takes its part of the processor, and what is made once is made by one."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

CPUS = Path("/sys/devices/system/cpu")
# Seconds between two looks whether another process has done with what one alone may do; Windows cannot wait itself.
LOOK_S = 0.2
# What torch asks for its number of threads.
THREADS = "OMP_NUM_THREADS"


def take_part(part: int, parts: int) -> None:
    """Keep this process to its part of the cores; to be called before a library counts them.

    Else each of two engines would start a thread for every core, and OpenVINO bind both engines' to the same ones.
    """
    if parts == 1:
        return
    mine = part_of(allowed_processors(), part, parts)
    os.environ[THREADS] = str(len(mine))
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # A hardened service may not; the number of threads is kept all the same.
            os.sched_setaffinity(0, mine)


def own_threads(parts: int) -> int | None:
    """How many threads are left to this process, by `take_part` or by who started it, as Ray; None for all.

    For libraries that do not ask.
    """
    said = os.environ.get(THREADS, "")
    threads = int(said) if said.isdecimal() and int(said) else None
    if parts > 1:
        return threads or 1
    return threads if threads is not None and threads < len(allowed_processors()) else None


def allowed_processors() -> set[int]:
    """The processors that this process may use."""
    if sys.platform == "linux":
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def part_of(cpus: set[int], part: int, parts: int, directory: Path = CPUS) -> set[int]:
    """The part of these processors; the two threads of a core, and the cores of a socket, stay together.

    With fewer cores than engines some share one.
    """
    cores: dict[tuple[int, int], list[int]] = {}
    for cpu in sorted(cpus):
        cores.setdefault(_core_of(cpu, directory), []).append(cpu)
    listed = [cores[core] for core in sorted(cores)]
    first, end = part * len(listed) // parts, (part + 1) * len(listed) // parts
    return {cpu for core in listed[first : max(end, first + 1)] for cpu in core}


def _core_of(cpu: int, directory: Path) -> tuple[int, int]:
    """The socket and the core that a processor belongs to; itself where Linux does not say."""
    topology = directory / f"cpu{cpu}" / "topology"
    try:
        socket, core = ((topology / name).read_text() for name in ("physical_package_id", "core_id"))
        return int(socket), int(core)
    except (OSError, ValueError):
        return 0, cpu


@contextlib.contextmanager
def alone_at(file: Path) -> Iterator[None]:
    """Do something that only one process at a time may; the system lets go of the lock at any death.

    Where the file system knows no locks, nobody waits. Raises: OSError when the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as lock:
        if sys.platform == "win32":
            while not _is_mine(lock):
                time.sleep(LOOK_S)
        else:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_mine(lock: IO[bytes]) -> bool:
    """Lock a file on Windows; False when another process has it."""
    if sys.platform == "win32":
        try:
            lock.seek(0)
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        except OSError:
            return True
    return True
