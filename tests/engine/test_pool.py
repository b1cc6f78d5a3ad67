"""Which engine of several gets what, and what becomes of it when one fails: with engines that do as the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace

import pytest

from florence_daemon.engine.limits import Limits
from florence_daemon.engine.member import EngineState, GivenBack
from florence_daemon.engine.pool import Pool
from florence_daemon.engine.protocol import Ask, Done, EngineSettings, Stages
from florence_daemon.errors import CheckpointError, EngineCrashed, EngineError, PictureError, Stopping
from tests.conftest import wait_for

ASKS = (Ask("<CAPTION>"),)
IN_FLIGHT = 2


class FakeMember:
    """An engine that has its model when the test says so, answers when it says so, and dies when it says so."""

    has_company = False
    is_stuck = False
    in_flight = IN_FLIGHT

    def __init__(self, settings: EngineSettings, on_change: Callable[[], None]) -> None:
        self.settings = settings
        self.now = EngineState("unloaded", keep_alive_s=300.0)
        self.had: dict[str, Future[Done]] = {}
        self.told: list[object] = []
        self.crashes: dict[str, int] = {}
        self.is_closed = False
        self._on_change = on_change

    @property
    def name(self) -> str:
        return self.settings.name

    def submit(
        self,
        picture: str | bytes,
        asks: tuple[Ask, ...],
        *,
        urgent: bool = False,
        on_begun: Callable[[], None] | None = None,
        crashes: int = 0,
    ) -> Future[Done]:
        if self.is_closed:
            raise Stopping("closed")
        if self.now.refuses_for_s is not None:
            raise CheckpointError(self.now.error)
        self.had[str(picture)], self.crashes[str(picture)] = Future(), crashes
        return self.had[str(picture)]

    def state(self) -> EngineState:
        return self.now

    def load(self) -> None:
        self.told.append("load")
        if self.now.name in ("unloaded", "failed"):
            self.now = EngineState("loading", keep_alive_s=300.0)

    def keep_alive(self, seconds: float) -> None:
        self.told.append(seconds)

    def unload(self) -> None:
        self.told.append("unload")

    def set_aside(self, reason: str) -> None:
        self.told.append("set aside")
        left = self._take()
        self.refuse(reason)
        for future in left:
            future.set_exception(GivenBack(reason))

    def fail(self, *names: str) -> None:
        for name in names:
            self.had[name].set_exception(EngineError("cuDNN error"))

    @property
    def loaded_on(self) -> str | None:
        return self.now.device

    def tick(self, *, more_waits: bool) -> None:
        """An idle one leaves, unless more waits."""
        self.told.append(more_waits)
        if self.now.unloads_in_s == 0 and not more_waits:
            self.now = EngineState("unloaded", keep_alive_s=300.0)

    def renew(self, settings: EngineSettings, idle_unload_s: float, limits: Limits) -> None:
        self.settings = settings

    def close(self, *, at_once: bool = False) -> None:
        self.is_closed = True
        for future in self._take():
            future.set_exception(Stopping("closed"))

    def _take(self) -> list[Future[Done]]:
        left = [future for future in self.had.values() if not future.done()]
        self.had = {name: future for name, future in self.had.items() if future.done()}
        return left

    def become(self, state: EngineState) -> None:
        self.now = replace(state, keep_alive_s=300.0)
        self._on_change()

    def arrive(self) -> None:
        self.become(EngineState("loaded", device=self.name, unloads_in_s=300.0))

    def refuse(self, reason: str = "no such GPU") -> None:
        self.become(EngineState("failed", error=reason, refuses_for_s=30.0, retries_in_s=30.0))

    def answer(self, *names: str) -> None:
        for name in names:
            self.had[name].set_result(Done(1, (), (1, 1), Stages()))

    def die(self, *at_work: str) -> None:
        """The process ends while it works on these."""
        suspects = [self.had.pop(name) for name in at_work]
        left = self._take()
        self.now = EngineState("restarting", error="killed", retries_in_s=1.0, keep_alive_s=300.0)
        for future in suspects:
            future.set_exception(GivenBack("killed", is_suspect=True))
        for future in left:
            future.set_exception(GivenBack("killed"))
        self._on_change()

    @property
    def waiting(self) -> list[str]:
        """What it has and has not answered."""
        return [name for name, future in self.had.items() if not future.done()]


class Setup:
    def __init__(self, *devices: str) -> None:
        self.opened: list[FakeMember] = []
        self.pool = Pool([EngineSettings("demo", device=device) for device in devices], 300, open_member=self._open)
        self.futures: dict[str, Future[Done]] = {}

    def _open(self, settings: EngineSettings, on_change: Callable[[], None]) -> FakeMember:
        self.opened.append(FakeMember(settings, on_change))
        return self.opened[-1]

    def submit(self, *names: str, urgent: bool = False) -> None:
        for name in names:
            self.futures[name] = self.pool.submit(name, ASKS, urgent=urgent)

    def renew(self, *devices: str) -> None:
        self.pool.renew([EngineSettings("demo", device=device) for device in devices], 300, Limits())

    def has(self, *wanted: list[str]) -> bool:
        """Whether the engines come to have these, each in this order."""
        wait_for(lambda: [member.waiting for member in self.opened] == list(wanted), 10, str(wanted))
        return True

    def load(self, *members: int) -> None:
        """Let these engines be asked to load, and have their model."""
        for number in members:
            wait_for(lambda number=number: self.opened[number].now.name == "loading", 10)  # type: ignore[misc]
        for number in members:
            self.opened[number].arrive()


@pytest.fixture
def two() -> Iterator[Setup]:
    """Two engines that have their models."""
    setup = Setup("cuda:0", "cuda:1")
    for member in setup.opened:
        member.arrive()
    yield setup
    setup.pool.close(at_once=True)


def test_one_engine_gets_everything_at_once_and_says_itself_what_is_wrong() -> None:
    setup = Setup("auto")
    (member,) = setup.opened
    assert not member.has_company
    setup.submit("a", "b", "c", "d")
    assert member.waiting == ["a", "b", "c", "d"]
    assert setup.pool.state() is member.now
    member.had["b"].set_exception(EngineCrashed("3 times"))
    assert isinstance(setup.futures["b"].exception(10), EngineCrashed)
    member.refuse()
    setup.submit("e")
    assert isinstance(setup.futures["e"].exception(10), CheckpointError)
    setup.pool.close()
    assert isinstance(setup.futures["a"].exception(10), Stopping)


def test_one_request_loads_one_engine_and_more_than_that_one_can_take_loads_the_next() -> None:
    setup = Setup("cuda:0", "cuda:1", "cuda:2")
    setup.submit("a", "b")
    setup.load(0)
    assert setup.has(["a", "b"], [], [])
    assert [member.told for member in setup.opened[1:]] == [[], []]
    setup.submit("c")
    wait_for(lambda: setup.opened[1].told == ["load"], 10)
    setup.opened[0].answer("a")
    assert setup.has(["b", "c"], [], [])
    setup.opened[1].arrive()
    setup.submit("d")
    assert setup.has(["b", "c"], ["d"], [])
    assert setup.opened[2].told == []
    setup.pool.close()


def test_work_goes_to_whoever_is_free(two: Setup) -> None:
    first, second = two.opened
    assert two.pool.in_flight == 2 * IN_FLIGHT
    two.submit("a", "b", "c", "d", "e", "f")
    assert two.has(["a", "c"], ["b", "d"])
    second.answer("b", "d")
    assert two.has(["a", "c"], ["e", "f"])
    assert [each.running for each in two.pool.members()] == [2, 2]
    assert [each.answered for each in two.pool.members()] == [0, 2]
    first.answer("a", "c")
    second.answer("e", "f")
    assert all(future.exception(10) is None for future in two.futures.values())


def test_requests_one_after_another_go_to_the_first_so_that_the_others_can_leave(two: Setup) -> None:
    for name in ("a", "b", "c"):
        two.submit(name)
        wait_for(lambda name=name: name in two.opened[0].had, 10)  # type: ignore[misc]
        two.opened[0].answer(name)
        assert two.futures[name].exception(10) is None


def test_people_have_places_of_their_own(two: Setup) -> None:
    two.submit("a", "b", "c", "d", "e")
    assert two.has(["a", "c"], ["b", "d"])
    two.submit("person", urgent=True)
    assert two.has(["a", "c", "person"], ["b", "d"])
    two.opened[0].answer("a")
    assert two.has(["c", "person", "e"], ["b", "d"])


def test_people_do_not_wait_for_a_suspect_where_another_engine_can_answer_them(two: Setup) -> None:
    first, _ = two.opened
    two.submit("a")
    assert two.has(["a"], [])
    first.die("a")
    assert two.has([], ["a"])
    first.arrive()
    two.submit("b", "c")
    assert two.has(["b", "c"], ["a"])
    two.submit("person", urgent=True)
    assert two.has(["b", "c", "person"], ["a"])


def test_what_a_dead_process_had_not_begun_goes_to_another_and_what_it_had_is_tried_there_alone(two: Setup) -> None:
    first, second = two.opened
    two.submit("a", "b", "c", "d")
    assert two.has(["a", "c"], ["b", "d"])
    first.die("a")
    second.answer("b")
    assert two.has([], ["d", "c"])
    second.answer("d")
    assert two.has([], ["c", "a"])
    assert second.crashes["a"] == 1
    two.submit("new")
    second.answer("c")
    assert two.has([], ["a"])
    second.answer("a")
    assert two.has([], ["new"])


def test_picture_that_every_engine_dies_of_is_set_aside_after_three_times(two: Setup) -> None:
    first, second = two.opened
    two.submit("poison")
    assert two.has(["poison"], [])
    first.die("poison")
    assert two.has([], ["poison"])
    first.arrive()
    assert two.has([], ["poison"])
    second.die("poison")
    assert two.has(["poison"], [])
    assert first.crashes["poison"] == 2
    first.die("poison")
    error = two.futures["poison"].exception(10)
    assert isinstance(error, EngineCrashed)
    assert "ended 3 times while it worked on this picture (killed); it is set aside" in str(error)


def test_broken_gpu_that_dies_of_every_picture_costs_no_picture_its_caption(two: Setup) -> None:
    broken, whole = two.opened
    for name in ("a", "b", "c", "d"):
        broken.arrive()
        two.submit(name)
        assert two.has([name], [])
        broken.die(name)
        assert two.has([], [name])
        whole.answer(name)
        assert two.futures[name].exception(10) is None


def test_suspect_waits_for_an_engine_that_has_not_died_of_it_though_its_model_must_come_first() -> None:
    setup = Setup("cuda:0", "cuda:1")
    setup.submit("a")
    setup.load(0)
    assert setup.has(["a"], [])
    setup.opened[0].die("a")
    setup.opened[0].arrive()
    setup.load(1)
    assert setup.has([], ["a"])
    setup.pool.close()


def test_engine_that_cannot_load_is_left_out_and_tried_again_later() -> None:
    setup = Setup("cuda:99", "cuda:0")
    setup.submit("a")
    wait_for(lambda: setup.opened[0].now.name == "loading", 10)
    setup.opened[0].refuse()
    setup.load(1)
    assert setup.has([], ["a"])
    state = setup.pool.state()
    assert (state.name, state.error, state.refuses_for_s) == ("loaded", "cuda:99: no such GPU", None)
    setup.submit("b", "c")
    assert setup.has([], ["a", "b"])
    assert setup.opened[0].told == ["load"]
    setup.opened[0].become(EngineState("failed", error="no such GPU"))
    wait_for(lambda: setup.opened[0].told == ["load"] * 2, 10)
    setup.opened[0].arrive()
    assert setup.has(["c"], ["a", "b"])
    setup.pool.close()


def test_while_none_can_load_it_says_why_and_the_next_request_tries_again() -> None:
    setup = Setup("cuda:98", "cuda:99")
    setup.submit("a")
    for member in setup.opened:
        wait_for(lambda member=member: member.now.name == "loading", 10)  # type: ignore[misc]
        member.refuse(f"there is no {member.name}")
    error = setup.futures["a"].exception(10)
    assert isinstance(error, CheckpointError)
    assert str(error) == "cuda:98: there is no cuda:98; cuda:99: there is no cuda:99"
    assert error.retry_s == 30.0
    assert setup.pool.state().refuses_for_s == 30.0
    # Long before the time that they are left out while others can work, which none can.
    for member in setup.opened:
        member.now = EngineState("failed", error="no such GPU", retries_in_s=500.0)
    setup.submit("b")
    setup.load(0)
    assert setup.has(["b"], [])
    setup.pool.close()


def test_process_that_cannot_be_ended_is_left_out() -> None:
    setup = Setup("cuda:0", "cuda:1")
    setup.opened[0].is_stuck = True
    setup.submit("a")
    setup.load(1)
    assert setup.has([], ["a"])
    assert not setup.pool.is_stuck
    setup.opened[1].is_stuck = True
    assert setup.pool.is_stuck
    setup.pool.close()


def test_errors_of_a_picture_are_told_as_they_are(two: Setup) -> None:
    two.submit("a", "b")
    assert two.has(["a"], ["b"])
    two.opened[0].had["a"].set_exception(PictureError("is truncated"))
    assert isinstance(two.futures["a"].exception(10), PictureError)


def test_picture_that_one_engine_cannot_answer_is_tried_by_another(two: Setup) -> None:
    first, second = two.opened
    two.submit("large")
    assert two.has(["large"], [])
    first.fail("large")
    assert two.has([], ["large"])
    second.fail("large")
    assert str(two.futures["large"].exception(10)) == "cuDNN error"
    assert first.told == second.told == []


def test_engine_that_fails_at_everything_at_once_takes_no_picture_from_the_others(two: Setup) -> None:
    first, second = two.opened
    for name in ("a", "b", "c"):
        two.submit(name)
        assert two.has([name], [])
        first.fail(name)
        assert two.has([], [name])
        second.answer(name)
        assert two.futures[name].exception(10) is None
    wait_for(lambda: first.told == ["set aside"], 10)
    two.submit("d")
    assert two.has([], ["d"])
    assert "failed 3 times in a row at pictures that another engine answered" in str(two.pool.state().error)


def test_models_that_nobody_needs_leave_though_others_work(two: Setup) -> None:
    two.pool.tick(more_waits=True)
    assert [member.told[-1] for member in two.opened] == [False, False]
    two.opened[1].become(EngineState("unloaded"))
    two.pool.tick(more_waits=True)
    assert [member.told[-1] for member in two.opened] == [True, True]
    for member in two.opened:
        member.now = EngineState("loaded", keep_alive_s=0.0)
    two.pool.tick(more_waits=True)
    assert [member.told[-1] for member in two.opened] == [True, True]


def test_when_all_are_idle_the_last_one_stays_while_more_waits(two: Setup) -> None:
    for member in two.opened:
        member.become(EngineState("loaded", device=member.name, unloads_in_s=0.0))
    two.pool.tick(more_waits=True)
    two.pool.tick(more_waits=True)
    assert [member.now.name for member in two.opened] == ["unloaded", "loaded"]
    two.pool.tick(more_waits=False)
    assert two.opened[1].now.name == "unloaded"


def test_load_has_all_try_again_where_none_could_a_moment_ago() -> None:
    setup = Setup("cuda:98", "cuda:99")
    for member in setup.opened:
        member.refuse()
    setup.pool.load()
    assert [member.told for member in setup.opened] == [["load"], ["load"]]
    assert setup.pool.state().name == "loading"
    setup.opened[1].arrive()
    setup.pool.load()
    assert [member.told for member in setup.opened] == [["load"], ["load"]]
    setup.pool.close()


def test_engine_is_told_to_be_left_out_only_while_another_can_work() -> None:
    setup = Setup("cuda:98", "cuda:99")
    setup.opened[0].now = EngineState("failed", error="no such GPU", refuses_for_s=20.0, retries_in_s=500.0)
    assert [each.state.retries_in_s for each in setup.pool.members()] == [500.0, None]
    setup.opened[1].now = EngineState("failed", error="no such GPU", retries_in_s=400.0)
    assert [each.state.retries_in_s for each in setup.pool.members()] == [20.0, None]
    setup.opened[1].now = EngineState("failed", error="its process cannot be ended")
    setup.opened[1].is_stuck = True
    assert [each.state.retries_in_s for each in setup.pool.members()] == [20.0, None]
    setup.pool.close()


def test_load_is_for_the_first_that_can_and_unload_and_keep_alive_for_all() -> None:
    setup = Setup("cuda:99", "cuda:0", "cuda:1")
    setup.pool.load()
    wait_for(lambda: setup.opened[0].told == ["load"], 10)
    setup.opened[0].refuse()
    setup.load(1)
    assert setup.opened[2].told == []
    setup.pool.keep_alive(7.0)
    setup.pool.unload()
    assert [member.told[-2:] for member in setup.opened] == [[7.0, "unload"]] * 3
    setup.pool.close()
    with pytest.raises(Stopping):
        setup.pool.load()
    with pytest.raises(Stopping):
        setup.submit("late")


def test_engines_come_and_go_with_the_configuration_and_what_they_had_is_not_lost(two: Setup) -> None:
    two.submit("a", "b", "c", "d", "e")
    assert two.has(["a", "c"], ["b", "d"])
    two.renew("cuda:1")
    assert two.opened[0].is_closed
    assert not two.opened[1].has_company
    wait_for(lambda: sorted(two.opened[1].waiting) == ["a", "b", "c", "d", "e"], 10)
    two.renew("cuda:1", "cuda:2")
    assert [each.name for each in two.pool.members()] == ["cuda:1", "cuda:2"]
    assert all(member.has_company for member in two.opened[1:])
    two.opened[1].answer("b", "d", "a", "c", "e")
    assert all(future.exception(10) is None for future in two.futures.values())


def test_engine_whose_name_is_gone_is_given_the_new_one(two: Setup) -> None:
    two.renew("cuda:1", "cuda:5")
    assert [(member.name, member.is_closed) for member in two.opened] == [("cuda:5", False), ("cuda:1", False)]
    assert [each.name for each in two.pool.members()] == ["cuda:1", "cuda:5"]


def test_engine_that_was_given_another_name_has_answered_nothing_under_it(two: Setup) -> None:
    two.submit("a", "b")
    assert two.has(["a"], ["b"])
    for member, name in zip(two.opened, "ab", strict=True):
        member.answer(name)
    two.renew("cuda:1", "cuda:5")
    assert [(each.name, each.answered) for each in two.pool.members()] == [("cuda:1", 1), ("cuda:5", 0)]


def test_close_ends_what_waits_and_what_engines_have(two: Setup) -> None:
    two.submit("a", "b", "c", "d", "e")
    assert two.has(["a", "c"], ["b", "d"])
    two.pool.close()
    assert {type(future.exception(10)) for future in two.futures.values()} == {Stopping}


def test_what_several_are_together() -> None:
    setup = Setup("cuda:0", "cuda:1", "cuda:2")
    assert setup.pool.state().name == "unloaded"
    setup.opened[0].now = EngineState("loading", 1)
    assert (setup.pool.state().name, setup.pool.state().pid) == ("loading", 1)
    setup.opened[1].now = EngineState("loaded", 2, "cuda:1", 3.0, None, gpu_bytes=5)
    setup.opened[2].now = EngineState("loaded", 3, "cuda:2", 4.0, 7.0, gpu_bytes=6)
    assert setup.pool.state() == EngineState("loaded", 2, "cuda:1, cuda:2", 4.0, None, gpu_bytes=11)
    setup.opened[1].now = replace(setup.opened[1].now, keep_alive_s=7.0)
    assert setup.pool.state().keep_alive_s == 7.0
    setup.pool.close()


def test_given_back_is_an_error_of_the_engine() -> None:
    assert isinstance(GivenBack("killed"), EngineError)
