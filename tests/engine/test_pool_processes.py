"""A pool with real processes that are killed, and renewed, at random: every request is answered all the same."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
from concurrent.futures import Future

import pytest

from benchmarks.faults import fake_engine
from florence_daemon.engine import handle, rests
from florence_daemon.engine.limits import Limits
from florence_daemon.engine.pool import Pool
from florence_daemon.engine.protocol import Ask, Done, EngineSettings

KILLS = 15
SEED = 20261130


def settings(count: int) -> list[EngineSettings]:
    return [EngineSettings("demo", device="cpu", part=part, parts=count) for part in range(count)]


class Troubles:
    """Kills one process after another that has its model, and after some kills has another number of engines."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._random = random.Random(SEED)
        self.has_ended = threading.Event()

    def run(self) -> None:
        kills = 0
        while kills < KILLS:
            self.has_ended.wait(self._random.uniform(0.05, 0.2))
            pids = [each.state.pid for each in self._pool.members() if each.state.name == "loaded" and each.running]
            if not pids:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._random.choice([pid for pid in pids if pid is not None]), signal.SIGKILL)
                kills += 1
            if kills % 4 == 0:
                self._pool.renew(settings(self._random.randint(1, 4)), 300, Limits())
        self.has_ended.set()


def test_everything_is_answered_while_engines_are_killed_and_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle, "BOOT", fake_engine.BOOT)
    monkeypatch.setattr(rests, "BACKOFF_S", 0.02)
    monkeypatch.setenv(fake_engine.VARIABLE, json.dumps({"slow_s": 0.002}))
    pool = Pool(settings(4), 300)
    troubles = Troubles(pool)
    thread = threading.Thread(target=troubles.run)
    thread.start()
    futures: list[Future[Done]] = []
    try:
        while not troubles.has_ended.is_set():
            futures.append(pool.submit(b"%d" % len(futures), (Ask("<CAPTION>"),), urgent=len(futures) % 17 == 0))
            if len(futures) >= 40:
                futures[-40].exception(120)
                pool.tick(more_waits=True)
        assert [error for future in futures if (error := future.exception(120)) is not None] == []
        assert sum(each.running for each in pool.members()) == 0
    finally:
        thread.join()
        pool.close()
