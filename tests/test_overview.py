"""What the page asks for every few seconds stays small."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from florence_daemon.activity import Activity
from florence_daemon.config import Config, FolderConfig
from florence_daemon.current import Current
from florence_daemon.engine.pool import Pool
from florence_daemon.engine.protocol import EngineSettings
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.needs import Needs
from florence_daemon.folders.records import making_of
from florence_daemon.folders.settle import stamp_of
from florence_daemon.folders.watch import Watcher
from florence_daemon.http.openapi import document
from florence_daemon.intake import FolderIntake
from florence_daemon.liveness import Liveness
from florence_daemon.queue import JobQueue
from florence_daemon.status import MOST_FAILURES, Status
from florence_daemon.tally import Tally
from florence_daemon.worker import Worker
from tests.conftest import FakeEngine


def test_of_many_failures_it_tells_some_and_how_many_there_are(tmp_path: Path, engine: FakeEngine) -> None:
    config = Config(folders=(FolderConfig(tmp_path),))
    ledger, queue = Ledger(), JobQueue(4)
    makes = partial(making_of, config.model)
    watcher = Watcher(config.folders, FolderIntake(queue, ledger, Needs(ledger, makes)), time.monotonic)
    real = Pool([EngineSettings("demo")], 300)
    worker = Worker(queue, engine, ledger, makes)
    status = Status(
        Current(config),
        queue,
        real,
        worker,
        watcher,
        ledger,
        Liveness(time.monotonic),
        Tally(),
        Activity(time.monotonic),
        lambda: "demo",
    )
    for number in range(MOST_FAILURES + 50):
        path = tmp_path / f"{number:03}.jpg"
        path.touch()
        ledger.failed(str(path), "is truncated", stamp_of(str(path)))
        overview = status.overview()
        assert overview["failures_total"] == number + 1
        assert len(overview["failures"]) == min(number + 1, MOST_FAILURES)
    described = document("demo")["paths"]["/overview"]["get"]["responses"]["200"]["content"]["application/json"]
    assert set(overview) == set(described["schema"]["properties"])
    real.close()
    worker.close()
