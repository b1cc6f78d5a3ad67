"""A process that not even the kernel can end, as its driver hangs: nobody waits for ever, nothing is lost."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from florence_daemon.engine import handle, member, succession
from florence_daemon.engine.limits import Limits
from florence_daemon.engine.member import GivenBack
from florence_daemon.engine.protocol import EngineSettings
from florence_daemon.errors import CheckpointError, Stopping
from tests.conftest import wait_for
from tests.engine.test_suspects import FakeProcess, Setup


class Undying(FakeProcess):
    """A process that ends when the test lets it, and not when it is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.has_ended = threading.Event()

    def wait(self, timeout: float | None = None) -> int:
        if not self.has_ended.wait(60 if timeout is None else timeout):
            raise subprocess.TimeoutExpired("engine", timeout or 60)
        return -9

    def kill(self) -> None:
        pass

    def die(self) -> None:
        self.has_ended.set()
        super().die()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    """An engine with company, whose process has its model and cannot be ended."""
    monkeypatch.setattr("tests.engine.test_suspects.FakeProcess", Undying)
    monkeypatch.setattr(handle, "STOP_S", 0.01)
    monkeypatch.setattr(handle, "STUCK_S", 0.01)
    monkeypatch.setattr(succession, "TOLD_S", 0.01)
    setup = Setup(monkeypatch)
    setup.engine.has_company = True
    setup.submit("first")
    setup.answer("first")
    yield setup
    for process in setup.processes:
        process.die()
    setup.engine.close(at_once=True)


def test_idle_process_that_does_not_go_is_left_out_and_holds_nobody_up(
    stuck: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    stuck.engine.keep_alive(0)
    stuck.engine.tick(more_waits=False)
    assert stuck.engine.is_stuck
    assert (stuck.engine.state().name, stuck.engine.state().error) == ("failed", member.STUCK)
    assert "cannot be ended: its driver or its disk hangs" in caplog.text
    with pytest.raises(GivenBack):
        stuck.submit("next")
    stuck.processes[0].die()
    wait_for(lambda: not stuck.engine.is_stuck, 60)
    stuck.submit("next")
    wait_for(lambda: len(stuck.processes) == 2, 60)
    stuck.answer("next")


def test_what_it_was_at_goes_to_others_when_other_settings_want_another_process(stuck: Setup) -> None:
    stuck.submit("a", "b")
    stuck.engine.renew(replace(EngineSettings("demo"), num_beams=1), -1, Limits())
    assert [type(stuck.futures[name].exception(60)) for name in ("a", "b")] == [GivenBack] * 2
    assert stuck.engine.is_stuck
    assert len(stuck.processes) == 1


def test_close_tells_everybody_and_returns(stuck: Setup) -> None:
    stuck.submit("a", "b")
    stuck.engine.close(at_once=True)
    assert [type(stuck.futures[name].exception(0)) for name in ("a", "b")] == [Stopping] * 2


def test_engine_that_answers_nothing_well_gives_all_back_before_it_waits_for_the_end(stuck: Setup) -> None:
    stuck.submit("a")
    stuck.engine.set_aside("it fails")
    assert isinstance(stuck.futures["a"].exception(0), GivenBack)
    assert stuck.engine.is_stuck
    with pytest.raises(CheckpointError, match="it fails"):
        stuck.submit("b")
