"""Row 14: file names that nobody would choose, by a seed: not UTF-8, 255 bytes long, newlines, combining characters."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import jpeg
from benchmarks.faults.process import DaemonProcess, NotInTime, wait_for, watching
from florence_daemon.logs import printable

# Longer than a picture's own ending, so that a sidecar's name may not fit where the picture's does.
EXT = "caption"
LONGEST_BYTES = 255
ENDINGS = (b".jpg", b".JPG", b".jpeg", b".Jpe", b".jfif")


@dataclass(frozen=True)
class Names:
    """How it went. listed: not captioned, but with the reason; unheard: neither; tracebacks: in the daemon's log."""

    names: int
    captioned: int
    listed: int
    unheard: tuple[bytes, ...]
    tracebacks: int
    seconds: float


def _any_bytes(chance: random.Random, length: int) -> bytes:
    return bytes(chance.choice([byte for byte in range(1, 256) if byte != 0x2F]) for _ in range(length))


def _of(*pieces: str) -> Callable[[random.Random, int], bytes]:
    return lambda chance, length: "".join(chance.choice(pieces) for _ in range(length)).encode()


KINDS: tuple[Callable[[random.Random, int], bytes], ...] = (
    _any_bytes,
    _of("\n", "\r", "\t", "a", "\x1b[31m", "\x07"),
    _of("é", "e\u0301", "\u0323", "a", "한", "각"),
    _of("\u202e", "\u200b", "\ufeff", "👩\u200d👩\u200d👧", "\U0001f600", "ﷺ"),
    _of(" ", "  ", "a", "."),
    _of("'", '"', "`", "$(id)", "%s", "%00", "{0}", "\\", "*", "?", "[a]", "<b>", "&amp;", "|", ";", "-"),
    _of("\u00e9".encode().decode("latin-1"), "ß", "İ", "ı", "ſ"),
)


def make_names(count: int, seed: int) -> list[bytes]:
    """Make this many names whose stems differ; every fifth one is as long as a name can be."""
    chance = random.Random(seed)
    names: dict[bytes, bytes] = {}
    while len(names) < count:
        ending = chance.choice(ENDINGS)
        stem = chance.choice(KINDS)(chance, chance.randint(1, 24))
        longest = LONGEST_BYTES - len(ending)
        if len(names) % 5 == 0:
            stem = (stem * (1 + longest // len(stem)))[:longest]
        stem = stem[:longest]
        # A dot or a tilde in front, and what ends like a temporary name, means that the file is to be left alone.
        if stem[:1] not in (b".", b"~"):
            names.setdefault(stem, stem + ending)
    return list(names.values())


def caption_names(directory: Path, count: int, seed: int, timeout_s: float) -> Names:
    """Write a picture under each name, half of them before the start, and see what becomes of each."""
    folder = directory / "pictures"
    folder.mkdir()
    names = make_names(count, seed)
    config = watching(folder, settle_s=0.1, outputs=[{"prompt": "CAPTION", "ext": EXT}])
    began_s = time.monotonic()
    _write(folder, names[: count // 2], 0)
    with DaemonProcess(directory / "home", config, fake=FakeSettings()) as daemon:
        _write(folder, names[count // 2 :], count)
        with suppress(NotInTime):
            wait_for(lambda: not _unheard(daemon, folder, names), timeout_s, "every name", every_s=0.2)
        unheard = _unheard(daemon, folder, names)
        captioned = sum(_has_caption(folder, name) for name in names)
        listed = len(names) - captioned - len(unheard)
        tracebacks = daemon.text().count("Traceback")
    return Names(len(names), captioned, listed, tuple(unheard), tracebacks, time.monotonic() - began_s)


def _write(folder: Path, names: list[bytes], first: int) -> None:
    for number, name in enumerate(names, first):
        Path(os.path.join(folder, os.fsdecode(name))).write_bytes(jpeg(number))


def _unheard(daemon: DaemonProcess, folder: Path, names: list[bytes]) -> list[bytes]:
    left = [name for name in names if not _has_caption(folder, name)]
    listed = set(daemon.failures()) if left else set()
    return [name for name in left if printable(os.path.join(folder, os.fsdecode(name))) not in listed]


def _has_caption(folder: Path, name: bytes) -> bool:
    stem = os.path.splitext(name)[0]
    sidecar = stem + b"." + EXT.encode()
    return len(sidecar) <= LONGEST_BYTES and os.path.exists(os.path.join(os.fsencode(folder), sidecar))
