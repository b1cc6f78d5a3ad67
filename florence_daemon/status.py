"""How the daemon is doing: all of it as JSON, in a word for a load balancer, in a line for the service manager."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from florence_daemon import __version__
from florence_daemon.activity import Activity
from florence_daemon.current import Current
from florence_daemon.engine.handle import resident_bytes
from florence_daemon.engine.member import EngineState, MemberState, join
from florence_daemon.engine.pool import Pool
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.records import Failure
from florence_daemon.folders.root import RootWatcher
from florence_daemon.folders.watch import Watcher, is_inside
from florence_daemon.http.health import Readiness
from florence_daemon.liveness import SILENT_S, Liveness
from florence_daemon.logs import printable
from florence_daemon.queue import JobQueue, Kind
from florence_daemon.tally import EngineReading, FolderReading, Reading, Tally
from florence_daemon.worker import Worker

# The page shows so many failures, and how many there are.
MOST_FAILURES = 100


class Status:
    """Looks at the parts and says what they do. takes_work: false until the daemon has started, and once it stops."""

    def __init__(
        self,
        current: Current,
        queue: JobQueue,
        engine: Pool,
        worker: Worker,
        watcher: Watcher,
        ledger: Ledger,
        liveness: Liveness,
        tally: Tally,
        activity: Activity,
        model_name: Callable[[], str],
    ) -> None:
        self.takes_work = False
        self.http_shows_life = liveness.expect("http")
        self._started_s = time.monotonic()
        self._current = current
        self._queue = queue
        self._engine = engine
        self._worker = worker
        self._watcher = watcher
        self._ledger = ledger
        self._liveness = liveness
        self._tally = tally
        self._activity = activity
        self._model_name = model_name

    def everything(self) -> dict[str, Any]:
        """Everything a person or a program wants to know, as JSON."""
        return {
            "version": __version__,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            **self._work(),
            "failures": [self._failure_status(each) for each in self._failures()],
        }

    def overview(self) -> dict[str, Any]:
        """What the page asks for every few seconds: of many failures some, and nothing that changes for nothing."""
        failures = self._ledger.failures()
        shown = list(itertools.islice((each for each in failures if self._is_shown(each.path)), MOST_FAILURES))
        return {
            "version": __version__,
            **self._work(),
            "failures": [self._failure_status(each) for each in shown],
            "failures_total": len(shown) if len(shown) < MOST_FAILURES else len(failures),
            "activity": self._activity.per_minute(),
        }

    def _work(self) -> dict[str, Any]:
        counts = self._worker.counts
        return {
            "model": self._model_status(),
            "queue": self._queue.counts()
            | {
                "settling": self._watcher.settling,
                "captioned": counts.captioned,
                "failed": counts.failed,
            },
            "folders": [self._folder_status(root) for root in self._watcher.roots],
            "configuration": self._current.status(),
        }

    def reading(self) -> Reading:
        """Everything that is measured."""
        engine = self._engine.state()
        queue = self._queue.counts()
        return Reading(
            version=__version__,
            model=self._model_name(),
            counted=self._tally.read(),
            waiting={kind: queue[kind.name.lower()] for kind in Kind},
            running=queue["running"],
            engine=engine,
            engines=tuple(EngineReading(each, _resident_bytes(each.state)) for each in self._engine.members()),
            folders=tuple(
                FolderReading(printable(root.path), self._watcher.health_of(root).state, root.settling)
                for root in self._watcher.roots
            ),
        )

    def _failures(self) -> list[Failure]:
        """Those that are there still, in folders that are watched: a backfill elsewhere has told of its own."""
        return [each for each in self._ledger.failures() if self._is_shown(each.path)]

    def _is_shown(self, path: str) -> bool:
        """Nothing is looked for on shares: one that hangs would take the thread that answers. Scans tell of them."""
        roots = [root for root in self._watcher.roots if is_inside(path, root.path)]
        is_local = all(root.is_local for root in roots)
        return bool(roots) and (not is_local or os.path.lexists(path))

    def readiness(self) -> Readiness:
        """How the daemon is doing, for a load balancer: degraded still takes work."""
        if not self.takes_work:
            return Readiness("stopping", ("the daemon takes no new work",))
        self.http_shows_life()
        silent = self._liveness.silent(SILENT_S)
        if silent:
            return Readiness("failed", tuple(f"{part}: no sign of life for {SILENT_S:g} s" for part in silent))
        engine = self._engine.state()
        if engine.refuses_for_s:
            return Readiness("failed", (str(engine.error),))
        folders = self._watcher.health().reason
        found = (folders, self._ledger.health, engine.error, *self._current.reasons())
        reasons = [reason for reason in found if reason]
        return Readiness("degraded" if reasons else "ok", tuple(printable(reason) for reason in reasons))

    def line(self) -> str:
        """How the daemon is doing, in a line for the service manager."""
        waiting = self._queue.counts()
        running = waiting.pop("running")
        counts = self._worker.counts
        return (
            f"model {self._engine.state().name}, {sum(waiting.values())} waiting, {running} running, "
            f"{counts.captioned} captioned, {counts.failed} failed"
        )

    def _model_status(self) -> dict[str, Any]:
        members = self._engine.members()
        state = _rounded(join(members))
        resident = [size for each in members if (size := _resident_bytes(each.state)) is not None]
        gpu_bytes = state.pop("gpu_bytes")
        del state["retries_in_s"]  # told of each engine
        return {
            "name": self._model_name(),
            "state": state.pop("name"),
            **state,
            "resident_mb": _megabytes(sum(resident) or None),
            "gpu_mb": _megabytes(gpu_bytes),
            "idle_unload_s": self._current.config.model.idle_unload_s,
            "engines": [_engine_status(each) for each in members],
        }

    def _folder_status(self, root: RootWatcher) -> dict[str, Any]:
        health = self._watcher.health_of(root)
        return {
            "path": printable(root.path),
            "health": health.state,
            "reason": printable(health.reason),
            "watching": root.watching(),
            "scanning": root.is_scanning,
            "settling": root.settling,
        }

    def _failure_status(self, failure: Failure) -> dict[str, Any]:
        """next_try_in_s: None until the file changes, or somebody asks for it."""
        wait_s = None if failure.next_try_s is None else max(0.0, failure.next_try_s - self._ledger.now_s())
        return {
            "path": printable(failure.path),
            "reason": printable(failure.reason),
            "attempts": failure.attempts,
            "next_try_in_s": None if wait_s is None else round(wait_s, 1),
        }


def _engine_status(member: MemberState) -> dict[str, Any]:
    state = _rounded(member.state)
    told = ("pid", "device", "load_s", "unloads_in_s", "error", "retries_in_s")
    return {
        "name": member.name,
        "state": member.state.name,
        "running": member.running,
        "answered": member.answered,
        **{name: state[name] for name in told},
        "resident_mb": _megabytes(_resident_bytes(member.state)),
        "gpu_mb": _megabytes(member.state.gpu_bytes),
    }


def _rounded(state: EngineState) -> dict[str, Any]:
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in asdict(state).items()}


def _resident_bytes(state: EngineState) -> int | None:
    return resident_bytes(state.pid) if state.pid else None


def _megabytes(size_bytes: int | None) -> int | None:
    return None if size_bytes is None else round(size_bytes / 2**20)
