"""What is sent to which engine process after one has died, with processes that do as the test says."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, cast

import pytest

from florence_daemon.engine import rests, succession
from florence_daemon.engine.handle import Child
from florence_daemon.engine.pipe import write_message
from florence_daemon.engine.process import Engine
from florence_daemon.engine.protocol import Ask, Begun, Done, EngineSettings, Loaded, Reply, Request, Stages
from florence_daemon.errors import EngineCrashed, Stopping
from tests.conftest import wait_for

ASKS = (Ask("<CAPTION>"),)


class FakeProcess:
    """What stands for a process: it says what the test says, and dies when told to."""

    pid = 1
    stdin = None

    def __init__(self) -> None:
        read_end, write_end = os.pipe()
        self.stdout = os.fdopen(read_end, "rb")
        self._replies = os.fdopen(write_end, "wb")
        self.sent: list[str] = []

    def say(self, *replies: Reply) -> None:
        for reply in replies:
            write_message(self._replies, reply)

    def die(self) -> None:
        self._replies.close()

    kill = die

    def wait(self, timeout: float | None = None) -> int:
        return -9


class FakeChild(Child):
    def write(self, message: Any) -> None:
        if isinstance(message, Request):
            cast(FakeProcess, self.process).sent.append(str(message.picture))


class Setup:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[FakeProcess] = []
        monkeypatch.setattr(succession, "start_child", self.start)
        monkeypatch.setattr(rests, "BACKOFF_S", 0.0)
        self.problem: OSError | None = None
        self.engine = Engine(EngineSettings("demo"), -1)
        self.futures: dict[str, Future[Done]] = {}

    def start(self, settings: EngineSettings) -> Child:
        if self.problem is not None:
            raise self.problem
        self.processes.append(FakeProcess())
        self.processes[-1].say(Loaded("cpu", 0.1, 8))
        return FakeChild(cast(Any, self.processes[-1]))

    def submit(self, *names: str, urgent: bool = False) -> None:
        for name in names:
            self.futures[name] = self.engine.submit(name, ASKS, urgent=urgent)

    def number(self, name: str) -> int:
        return list(self.futures).index(name) + 1

    def begin(self, *names: str) -> None:
        self.processes[-1].say(*(Begun(self.number(name)) for name in names))

    def answer(self, *names: str) -> None:
        self.processes[-1].say(*(Done(self.number(name), (), (1, 1), Stages()) for name in names))
        for name in names:
            assert self.futures[name].exception(60) is None

    def die(self) -> None:
        """Let the process die, and wait until the next one is there."""
        count = len(self.processes)
        self.processes[-1].die()
        wait_for(lambda: len(self.processes) > count)

    def sent(self, *names: str) -> bool:
        """Whether the process of now was sent these, waiting for the last of them."""
        wait_for(lambda: len(self.processes[-1].sent) >= len(names))
        return self.processes[-1].sent == list(names)


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    setup = Setup(monkeypatch)
    yield setup
    setup.engine.close(at_once=True)


def test_what_had_not_begun_goes_at_once_and_each_suspect_alone(setup: Setup) -> None:
    setup.submit("a", "b", "c", "d")
    setup.begin("a", "b")
    setup.die()
    assert setup.sent("c", "d")
    setup.answer("c")
    assert setup.sent("c", "d")
    setup.answer("d")
    assert setup.sent("c", "d", "a")
    setup.answer("a")
    assert setup.sent("c", "d", "a", "b")
    setup.answer("b")


def test_only_the_guilty_is_set_aside(setup: Setup) -> None:
    setup.submit("good", "guilty", "fine")
    setup.begin("good", "guilty", "fine")
    setup.die()
    setup.begin("good")
    setup.answer("good")
    assert setup.sent("good", "guilty")
    setup.begin("guilty")
    setup.die()
    assert setup.sent("guilty")
    setup.begin("guilty")
    setup.die()
    error = setup.futures["guilty"].exception(60)
    assert isinstance(error, EngineCrashed)
    assert "ended 3 times while it worked on this picture (killed by signal 9)" in str(error)
    assert setup.sent("fine")
    setup.answer("fine")


def test_new_work_waits_while_suspects_are_tried_but_people_go_between(setup: Setup) -> None:
    setup.submit("a", "b")
    setup.begin("a", "b")
    setup.die()
    setup.submit("new")
    setup.submit("person", urgent=True)
    assert setup.sent("a")
    setup.answer("a")
    assert setup.sent("a", "person")
    setup.answer("person")
    assert setup.sent("a", "person", "b")
    setup.answer("b")
    assert setup.sent("a", "person", "b", "new")
    setup.answer("new")


def test_process_that_dies_while_it_loads_makes_nobody_suspect(setup: Setup) -> None:
    setup.submit("a", "b")
    setup.die()
    assert setup.sent("a", "b")
    setup.answer("a", "b")


def test_next_process_waits_twice_as_long_each_time_until_one_gives_an_answer(
    setup: Setup, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rests, "BACKOFF_S", 0.001)
    monkeypatch.setattr(rests, "LONGEST_BACKOFF_S", 0.003)
    setup.submit("a", "b")
    for name in ("a", "b"):
        setup.begin(name)
        setup.die()
    setup.die()
    assert setup.sent("b")
    setup.answer("b")
    assert setup.sent("b", "a")
    setup.die()
    waits = re.findall(r"it is started again in (\S+) s", caplog.text)
    assert waits == ["0.001", "0.002", "0.003", "0.001"]


def test_next_process_does_not_wait_longer_once_the_guilty_is_found(
    setup: Setup, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rests, "BACKOFF_S", 0.001)
    setup.submit("guilty")
    for _ in range(2):
        setup.begin("guilty")
        setup.die()
    setup.begin("guilty")
    setup.processes[-1].die()
    assert isinstance(setup.futures["guilty"].exception(60), EngineCrashed)
    waits = re.findall(r"it is started again in (\S+) s", caplog.text)
    assert waits == ["0.001", "0.002", "0.001"]


def test_what_comes_while_the_next_process_waits_is_held_and_given_up_at_a_stop(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rests, "BACKOFF_S", 600.0)
    setup.submit("a")
    setup.begin("a")
    setup.processes[-1].die()
    wait_for(lambda: setup.engine.state().name == "restarting")
    assert setup.engine.state().error == "killed by signal 9"
    setup.submit("late")
    assert len(setup.processes) == 1
    setup.engine.close()
    assert [type(setup.futures[name].exception(60)) for name in ("a", "late")] == [Stopping, Stopping]


def test_load_that_is_wanted_while_the_next_process_waits_is_done_after_that(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.submit("a")
    setup.answer("a")
    monkeypatch.setattr(rests, "BACKOFF_S", 600.0)
    setup.processes[-1].die()
    wait_for(lambda: setup.engine.state().name == "restarting")
    setup.engine.load()
    assert len(setup.processes) == 1
    setup.engine._processes.resume_after(0.0)
    assert len(setup.processes) == 2
    wait_for(lambda: setup.engine.state().name == "loaded")


def test_close_returns_once_everybody_has_been_told(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    bury = FakeChild.bury

    def bury_slowly(child: FakeChild) -> str:
        time.sleep(0.2)
        return bury(child)

    monkeypatch.setattr(FakeChild, "bury", bury_slowly)
    setup.submit("a")
    setup.begin("a")
    setup.engine.close(at_once=True)
    assert setup.futures["a"].done()
    assert isinstance(setup.futures["a"].exception(), Stopping)


def test_answer_that_comes_during_a_stop_starts_no_other_process(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession, "TOLD_S", 0.0)
    setup.submit("a", "b")
    setup.begin("a", "b")
    setup.die()
    assert setup.sent("a")
    setup.engine.close()
    setup.answer("a")
    setup.processes[-1].die()
    assert isinstance(setup.futures["b"].exception(60), Stopping)
    assert len(setup.processes) == 2


def test_process_that_cannot_be_started_is_tried_again(setup: Setup) -> None:
    setup.problem = BlockingIOError(11, "Resource temporarily unavailable")
    setup.submit("a")
    assert "could not be started: [Errno 11] Resource" in str(setup.engine.state().error)
    setup.problem = None
    assert wait_for(lambda: setup.processes)
    assert setup.sent("a")
    setup.answer("a")


def test_engine_says_how_many_requests_keep_it_busy(setup: Setup) -> None:
    assert setup.engine.in_flight == succession.FIRST_IN_FLIGHT
    setup.submit("a")
    wait_for(lambda: setup.engine.in_flight == 8)
