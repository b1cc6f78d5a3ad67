"""The Ray cluster that a backfill works on: joined, looked at, and given batches until all have come back."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from florence_daemon.cluster.addresses import missing, one_line
from florence_daemon.cluster.answering import Outcome
from florence_daemon.cluster.passes import LOST, Pass, Places
from florence_daemon.cluster.plan import Plan
from florence_daemon.errors import ClusterError, UsageError

log = logging.getLogger(__name__)

# Only addresses and outcomes go through Ray's store of objects.
OBJECTS_BYTES = 256 * 2**20
# A cluster that does not answer by then is not there.
REACH_S = 5.0
# A head that does not answer for so long is gone, not busy.
HEAD_S = 15.0
# Ray tells nobody that it is used, draws no bars through ours, and does not start a cluster for a thread that asks for
# something once this run has left its own.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}


class Cluster:
    """A Ray cluster that this process has joined; `local` is one of this machine alone, gone at the end."""

    def __init__(self, address: str, engine_cpus: int | None = None) -> None:
        """address: local, auto, or host:port. engine_cpus: cores of an engine, where there is no GPU.

        Raises: ClusterError when none is there; UsageError without Ray.
        """
        self._ray = _import_ray()
        self._engine_cpus = engine_cpus
        _check_reachable(address)
        own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECTS_BYTES}
        try:
            with _silence():
                self._ray.init(
                    address=address,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **(own if address == "local" else {}),
                )
        except (ConnectionError, RuntimeError, ValueError, OSError, self._ray.exceptions.RayError) as error:
            raise ClusterError(f"--ray {address}: {one_line(error)}{_hint()}") from error
        self._head = self._ray.get_runtime_context().gcs_address
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_errored_blocks = -1  # what was with a lost machine is given to another
        for name in ("ray.data", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)

    def close(self) -> None:
        """Leave it; the engines of this run end."""
        if _answers(self._head):
            self._ray.shutdown()

    def places(self) -> Places:
        """Where engines can be now: a GPU each, or, where there is none, so many cores each."""
        gpus = sum(int(machine.get("GPU", 0)) for machine in self._machines())
        if gpus and self._engine_cpus is None:
            return Places(gpus, 0, 1)
        cores = self._cores()
        each = self._engine_cpus or min(cores, default=1)
        return Places(sum(core // each for core in cores), each, 0)

    def places_now(self) -> Places:
        """The same in the middle of a run. Raises: ClusterError when the head is gone.

        Ray would say nothing for a minute, and then end this process, still without a word.
        """
        tried_s = time.monotonic()
        while not _answers(self._head):
            if time.monotonic() - tried_s > HEAD_S:
                raise ClusterError(
                    f"the head of the cluster, {self._head}, is gone; start it, then the same command takes up there"
                )
            time.sleep(1)
        return self.places()

    def check(self) -> None:
        """Raises: UsageError when no machine has so many cores; ClusterError when none has any."""
        if self.places().count:
            return
        if self._engine_cpus is None:
            raise ClusterError("no machine of the cluster has a core or a GPU for an engine")
        most = max(self._cores(), default=0)
        raise UsageError(f"--engine-cpus {self._engine_cpus}: the largest machine of the cluster has {most} cores")

    def _cores(self) -> list[int]:
        return [int(machine["CPU"]) for machine in self._machines() if machine.get("CPU")]

    def _machines(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def put(self, number: int, parcel: bytes) -> Any:
        """Keep a batch where all machines can fetch it."""
        import pyarrow

        return self._ray.put(pyarrow.table({"number": [number], "errands": pyarrow.array([parcel], pyarrow.binary())}))

    def run(self, plan: Plan, parcels: Sequence[Any]) -> Iterator[list[Outcome]]:
        """Yield what became of each batch, as it ends, until all have ended; nothing about once a second meanwhile.

        What machines lost is given to others. Raises: ClusterError when no engine is left, or none can be started.
        """
        left = dict(enumerate(parcels))
        while left:
            places, before = self.places(), len(left)
            if not places.count:
                raise ClusterError(LOST)
            for number, outcomes in Pass(self._ray, plan, places, left, self.places_now).run():
                if left.pop(number, None) is not None or not outcomes:
                    yield outcomes
            if len(left) == before:
                raise ClusterError(LOST)
            if left:
                log.warning("%d batches were with machines that are gone; they are given to others", len(left))


def _answers(address: str) -> bool:
    """Tell whether something listens there."""
    try:
        _connect(address)
    except OSError:
        return False
    return True


def _connect(address: str) -> None:
    """Connect to host:port, and no more. Raises: OSError."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()


def _import_ray() -> Any:
    """Raises: UsageError when it is not installed."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise missing("--ray", error) from None
    return ray


def _hint() -> str:
    """What may be amiss where something answers: Ray does not say so of a token that it was not given."""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return ""
    return (
        "; if the cluster asks for a token, set RAY_AUTH_MODE=token here too, and have its token in ~/.ray/auth_token"
    )


def _check_reachable(address: str) -> None:
    """Raises: ClusterError within seconds; Ray would try for a minute. UsageError for what is no address."""
    if address in ("local", "auto"):
        return
    host, sign, port = address.rpartition(":")
    if not sign or not port.isdecimal() or "/" in host:
        raise UsageError(f"--ray {address}: give local, auto or host:port, as `ray start --head` prints it")
    try:
        _connect(address)
    except OSError as error:
        raise ClusterError(f"--ray {address}: no cluster answers there: {error}") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what Ray's native part writes past Python from the person, who is told by exceptions."""
    kept, nowhere = {number: os.dup(number) for number in (1, 2)}, os.open(os.devnull, os.O_WRONLY)
    for number in kept:
        os.dup2(nowhere, number)
    try:
        yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
