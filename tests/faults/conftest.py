"""A folder of pictures, and the real daemon over it with the stand-in engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.process import DaemonProcess, watching

StartDaemon = Callable[..., DaemonProcess]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


@pytest.fixture
def start(tmp_path: Path, folder: Path) -> Iterator[StartDaemon]:
    """Start the daemon over the folder; the engine's settings and the folder's can be given."""
    running: list[DaemonProcess] = []

    def start_one(fake: FakeSettings | None = None, prefix: tuple[str, ...] = (), **settings: object) -> DaemonProcess:
        config = watching(folder, **settings)
        running.append(DaemonProcess(tmp_path / "home", config, fake=fake or FakeSettings(), prefix=prefix))
        return running[-1]

    yield start_one
    for daemon in running:
        daemon.kill()
