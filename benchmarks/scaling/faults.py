"""What is lost, and what is done twice, when a server, an engine, a worker, a node or the driver is killed midway."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.cluster import FAULTS, run_trial
from benchmarks.faults.fake_engine import FakeSettings, digest_of
from benchmarks.faults.pictures import count_sidecars, is_captioned_rightly, sidecar, write_jpegs
from benchmarks.faults.process import DaemonProcess, environment, wait_for

SLOW_S = 0.05


def faults(directory: Path, *, quick: bool) -> dict[str, Any]:
    """Each in a trial of its own, in the middle of a backfill of stand-ins; one that cannot be tried says why."""
    count = 24 if quick else 200
    found: dict[str, Any] = {"server": _tried(lambda: kill_server(directory / "server", count))}
    for fault in () if quick else [each for each in FAULTS if each != "none"]:
        found[fault] = _tried(partial(kill_on_cluster, directory / fault, fault, count))
    return {"faults": found}


def _tried(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return run()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def kill_on_cluster(directory: Path, fault: str, pictures: int) -> dict[str, Any]:
    """Two Ray nodes do a backfill, and one of `FAULTS` comes in the middle. allowed: see `Trial`."""
    directory.mkdir()
    trial = run_trial(directory, fault, pictures, slow_s=SLOW_S)
    return {
        "pictures": trial.pictures,
        "lost": trial.lost,
        "twice": trial.twice,
        "allowed": trial.allowed,
        "runs": trial.runs,
        "seconds": round(trial.seconds, 1),
    }


def kill_server(directory: Path, pictures: int) -> dict[str, Any]:
    """Two servers do a backfill, and one is killed when a third of it is done.

    allowed: pictures that it had begun by then and that had no caption.
    """
    folder = directory / "pictures"
    folder.mkdir(parents=True)
    paths = write_jpegs(folder, range(pictures))
    fake = FakeSettings(slow_s=SLOW_S)
    config = '{"model": {"name": "demo"}}'
    with (
        DaemonProcess(directory / "one", config, fake=fake) as one,
        DaemonProcess(directory / "two", config, fake=fake) as two,
    ):
        began_s = time.monotonic()
        with _backfill(directory, folder, [one.url, two.url]) as running:
            try:
                wait_for(lambda: _is_midway(folder, pictures, one) or running.poll() is not None, 300, "a third")
                one.kill()
                held = {each.digest for each in one.inferred("begun")}
                held -= {digest_of(path.read_bytes()) for path in paths if sidecar(path).exists()}
                running.wait(600)
            finally:
                running.kill()
        seconds = time.monotonic() - began_s
        begun = Counter(each.digest for daemon in (one, two) for each in daemon.inferred("begun"))
    return {
        "pictures": pictures,
        "lost": sum(not is_captioned_rightly(path) for path in paths),
        "twice": sum(begun.values()) - len(begun),
        "allowed": len(held),
        "runs": 1,
        "seconds": round(seconds, 1),
    }


def _is_midway(folder: Path, pictures: int, server: DaemonProcess) -> bool:
    return count_sidecars(folder) >= pictures // 3 and len(server.inferred("begun")) > 0


def _backfill(directory: Path, folder: Path, urls: Sequence[str]) -> subprocess.Popen[bytes]:
    through = [word for url in urls for word in ("--server", url)]
    asks = ("--prompt", "CAPTION", "--ext", "txt")
    with (directory / "backfill.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "florence_daemon", "backfill", os.fspath(folder), *through, *asks],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(directory),
        )
