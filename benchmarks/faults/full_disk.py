"""Row 11: the disk is full, read-only or forbidden while there is work, and well again later."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import mounts
from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import count_sidecars, is_captioned_rightly, sidecar, write_jpegs
from benchmarks.faults.process import DaemonProcess, NotInTime, wait_for, watching

ENGINE = FakeSettings(answer_bytes=6000)


@dataclass(frozen=True)
class Blocked:
    """How it went. while_blocked: sidecars that could be written meanwhile; cpu_share: of one core, while blocked.

    said: whether the daemon told anybody; captioned: in the end; recovery_s: from the end of the fault until then.
    kept: whether a caption that was there before is still the same.
    """

    pictures: int
    while_blocked: int
    cpu_share: float
    inferences_while_blocked: int
    said: bool
    captioned: int
    recovery_s: float
    kept: bool


def fill(folder: Path) -> Path:
    """Write a file until there is no space left; return it."""
    filler = folder / "filler.bin"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return filler


def fill_the_disk(directory: Path, pictures: int, blocked_s: float, timeout_s: float) -> Blocked:
    """Let a file system of 1 MB be full while pictures wait, and free it later."""
    folder = _make_folder(directory)
    fillers: list[Path] = []

    def break_it(daemon: DaemonProcess) -> None:
        fillers.append(fill(mounts.seen_by(daemon, folder)))

    prefix = mounts.own_mounts(mounts.tmpfs(folder))
    return _go_through(
        directory, folder, pictures, prefix, break_it, lambda daemon: fillers[0].unlink(), blocked_s, timeout_s
    )


def make_read_only(directory: Path, pictures: int, blocked_s: float, timeout_s: float) -> Blocked:
    """Remount the file system read-only, as the kernel does after an error, and read-write again later."""
    folder = _make_folder(directory)
    return _go_through(
        directory,
        folder,
        pictures,
        mounts.own_mounts(mounts.tmpfs(folder, "8m")),
        lambda daemon: mounts.remount(daemon, folder, "ro"),
        lambda daemon: mounts.remount(daemon, folder, "rw"),
        blocked_s,
        timeout_s,
    )


def forbid(directory: Path, pictures: int, blocked_s: float, timeout_s: float) -> Blocked:
    """Take the right to write into the folder away, and give it back."""
    folder = _make_folder(directory)
    return _go_through(
        directory,
        folder,
        pictures,
        mounts.bound_by_modes(),
        lambda daemon: folder.chmod(0o555),
        lambda daemon: folder.chmod(0o755),
        blocked_s,
        timeout_s,
    )


def _make_folder(directory: Path) -> Path:
    folder = directory / "pictures"
    folder.mkdir()
    return folder


def _go_through(
    directory: Path,
    folder: Path,
    pictures: int,
    prefix: Sequence[str],
    break_it: Callable[[DaemonProcess], None],
    mend_it: Callable[[DaemonProcess], None],
    blocked_s: float,
    timeout_s: float,
) -> Blocked:
    config = watching(folder, settle_s=0.1)
    with DaemonProcess(directory / "home", config, fake=ENGINE, prefix=prefix) as daemon:
        inside = mounts.seen_by(daemon, folder)
        (early,) = write_jpegs(inside, [0])
        wait_for(lambda: is_captioned_rightly(early, ENGINE.answer_bytes), 60, "the first caption")
        daemon.freeze()
        paths = write_jpegs(inside, range(1, pictures + 1))
        break_it(daemon)
        daemon.thaw()
        with suppress(NotInTime):
            wait_for(lambda: _says_it(daemon), 60, "the daemon to say that something is wrong")
        said = _says_it(daemon)
        with suppress(NotInTime):
            wait_for(daemon.is_quiet, 60, "what was begun to be given up")
        before_s, before, began_s = daemon.cpu_s(), len(daemon.inferred()), time.monotonic()
        time.sleep(blocked_s)
        share = (daemon.cpu_s() - before_s) / (time.monotonic() - began_s)
        inferences = len(daemon.inferred()) - before
        while_blocked = count_sidecars(inside) - 1
        mend_it(daemon)
        began_s = time.monotonic()
        with suppress(NotInTime):
            wait_for(lambda: _count(paths) == len(paths), timeout_s, "every caption", every_s=0.1)
        recovery_s = time.monotonic() - began_s
        kept = is_captioned_rightly(early, ENGINE.answer_bytes)
        return Blocked(len(paths), while_blocked, share, inferences, said, _count(paths), recovery_s, kept)


def _count(paths: Sequence[Path]) -> int:
    return sum(sidecar(path).exists() and is_captioned_rightly(path, ENGINE.answer_bytes) for path in paths)


def _says_it(daemon: DaemonProcess) -> bool:
    status = daemon.status()
    return bool(status["failures"]) or any(root["health"] != "ok" for root in status["folders"])
