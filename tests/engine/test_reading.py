"""Reading ahead of the model, with real threads and pictures that take as long as the test wants."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from florence_daemon.engine.reading import ReadAhead
from florence_daemon.engine.work import Work


class Setup:
    """A reader for others and one for urgent ones; what is called `slow` is read once the test says so."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.pool = ThreadPoolExecutor(2)
        self.ahead = ReadAhead(self.read, room=3, readers=1, pool=self.pool)

    def read(self, work: Work) -> None:
        if work.source == "slow":
            assert self.may_go_on.wait(120)
        if work.source == "bad":
            raise ValueError("bad")

    def put(self, *names: str, urgent: bool = False) -> None:
        for name in names:
            self.ahead.put(Work(0, name, (), lambda reply: None, urgent))

    def read_names(self, *, urgent: bool, count: int) -> list[str]:
        assert self.ahead.wait_for(lambda: self.ahead.count_read(urgent=urgent) >= count, 120)
        return [str(work.source) for work in self.ahead.take(count, urgent=urgent)]


@pytest.fixture
def setup() -> Iterator[Setup]:
    setup = Setup()
    yield setup
    setup.may_go_on.set()
    setup.pool.shutdown()


def test_urgent_picture_is_read_while_others_keep_their_readers_busy(setup: Setup) -> None:
    setup.put("slow", "slow")
    setup.put("quick", urgent=True)
    assert setup.read_names(urgent=True, count=1) == ["quick"]
    assert setup.ahead.count_read(urgent=False) == 0


def test_pictures_are_taken_in_their_order_and_make_room_for_the_next(setup: Setup) -> None:
    setup.put("1", "2", "3", "4", "5")
    assert setup.read_names(urgent=False, count=3) == ["1", "2", "3"]
    assert setup.read_names(urgent=False, count=2) == ["4", "5"]


def test_what_is_put_back_is_taken_first(setup: Setup) -> None:
    setup.put("1", "2", "3")
    assert setup.ahead.wait_for(lambda: setup.ahead.count_read(urgent=False) == 3, 120)
    setup.ahead.put_back(setup.ahead.take(2, urgent=False))
    assert setup.read_names(urgent=False, count=3) == ["1", "2", "3"]


def test_picture_that_cannot_be_read_wakes_whoever_waits(setup: Setup) -> None:
    setup.put("bad")
    assert setup.ahead.wait_for(lambda: False, 120)
    ((work, error),) = setup.ahead.take_refused()
    assert (work.source, str(error)) == ("bad", "bad")


def test_closing_wakes_whoever_waits(setup: Setup) -> None:
    threading.Thread(target=setup.ahead.close).start()
    assert not setup.ahead.wait_for(lambda: False, None)


def test_waiting_ends_after_its_time(setup: Setup) -> None:
    setup.put("slow")
    assert not setup.ahead.wait_for(lambda: setup.ahead.count_read(urgent=False) > 0, 0.01)
