"""One run of Ray Data over batches: its pool of engines, and what is done when their machines are gone."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from florence_daemon.cluster.answering import Outcome
from florence_daemon.cluster.plan import Captioner, Plan, unpack_outcomes
from florence_daemon.errors import ClusterError

log = logging.getLogger(__name__)

# Batches that an engine has: one that it is at, one that is ready when that ends, so that it never waits.
AT_A_TIME = 2
# Seconds between two looks at the machines, and at whether the person wants to stop.
LOOK_S = 1.0
# When all that is left was with machines that are gone, nothing ends any more: after so long it is given to others.
QUIET_S = 15.0
# An engine notes itself before it loads the model. When none has after so long, other work has all places.
BEGIN_S = 60.0
LOST = "the cluster has lost its machines; the same command takes up there"


@dataclass(frozen=True)
class Places:
    """Where engines can be: so many, each with these resources of Ray's."""

    count: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        kind = "a GPU" if self.gpus else f"{self.cpus:g} cores"
        return f"{self.count} {'engine' if self.count == 1 else 'engines'} with {kind} each"


class Pass:
    """One run of Ray Data over what is left: its thread reads, this one looks at the machines meanwhile."""

    def __init__(
        self, ray: Any, plan: Plan, places: Places, left: Mapping[int, Any], places_now: Callable[[], Places]
    ) -> None:
        self._ray = ray
        self._plan = plan
        self._places = places
        self._parcels = list(left.values())
        self._places_now = places_now
        self._roll = open_roll(ray)
        self._results: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()
        self._waiting = len(left)
        self._slowest_s = 0.0
        self._last_s = time.monotonic()
        self._is_given_up = False
        self._is_told = False

    def run(self) -> Iterator[tuple[int, list[Outcome]]]:
        """Yield each batch's number and what became of it, until all have ended or the rest is lost."""
        threading.Thread(target=self._read, name="ray-data", daemon=True).start()
        while True:
            try:
                row = self._results.get(timeout=LOOK_S)
            except queue.Empty:
                self._look()
                self._tell_if_none_begins()
                yield -1, []
                continue
            if row is None:
                return
            if isinstance(row, BaseException):
                raise ClusterError(_said_of(row)) from row
            self._waiting -= 1
            self._last_s = time.monotonic()
            self._slowest_s = max(self._slowest_s, row["seconds"])
            yield row["number"], unpack_outcomes(row["outcomes"])

    def _look(self) -> None:
        """Give up what was with machines that are gone, once nothing else is left. Raises: ClusterError.

        Ray waits for ever for a machine to come back. One that does, or another in its place, is welcome until then.
        """
        places = self._places_now().count
        lost = self._places.count - places
        if lost <= 0 or time.monotonic() - self._last_s < max(QUIET_S, 2 * self._slowest_s):
            return
        if not places:
            raise ClusterError(LOST)
        if self._waiting <= lost * AT_A_TIME and not self._is_given_up:
            self._is_given_up = True
            self._give_up()

    def _tell_if_none_begins(self) -> None:
        """Say once that all places are taken: Ray waits for one, without a word."""
        if self._is_told or time.monotonic() - self._last_s < BEGIN_S:
            return
        self._is_told = True
        if not self._ray.get(self._roll.all.remote()):
            log.warning("no engine has begun yet: other work has the cluster's places; `ray status` tells of it")

    def _read(self) -> None:
        """Run Ray Data to its end; a thread's whole job."""
        try:
            for row in self._dataset().iter_rows():
                self._results.put(row)
        except BaseException as error:
            self._results.put(error)
        else:
            self._results.put(None)

    def _dataset(self) -> Any:
        data = self._ray.data
        count = max(1, min(self._places.count, len(self._parcels)))
        pool = data.ActorPoolStrategy(
            size=count, max_tasks_in_flight_per_actor=AT_A_TIME, max_concurrent_calls_per_actor=AT_A_TIME
        )
        return data.from_arrow_refs(self._parcels).map_batches(
            EnrolledCaptioner,
            fn_constructor_args=(self._plan, self._roll),
            batch_size=None,
            batch_format="numpy",
            compute=pool,
            num_cpus=self._places.cpus,
            num_gpus=self._places.gpus,
        )

    def _give_up(self) -> None:
        """End the engines, also those without a place: what they were given fails, and the pass ends by itself."""
        for engine in self._ray.get(self._roll.all.remote()):
            self._ray.kill(engine, no_restart=True)


class Roll:
    """The engines that have begun: Ray Data keeps them to itself, and those of machines that are gone must be ended."""

    def __init__(self) -> None:
        self._engines: list[Any] = []

    def note(self, engine: Any) -> None:
        """One has begun."""
        self._engines.append(engine)

    def all(self) -> list[Any]:
        """All of them."""
        return self._engines


def open_roll(ray: Any) -> Any:
    """A roll on this very machine: it lives as long as this process, and takes no core."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Roll).options(num_cpus=0, scheduling_strategy=here).remote()


class EnrolledCaptioner(Captioner):
    """A captioner that has put itself on the roll."""

    def __init__(self, plan: Plan, roll: Any) -> None:
        import ray

        ray.get(roll.note.remote(ray.get_runtime_context().current_actor))
        super().__init__(plan)


def _said_of(error: BaseException) -> str:
    """What went wrong, in a line: Ray puts the traceback of the other machine first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"Ray could not go on: {lines[-1] if lines else type(error).__name__}"
