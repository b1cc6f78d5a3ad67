"""What has been done since the start, in numbers: jobs by class and outcome, images, tokens, seconds per stage."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field

from florence_daemon.engine.member import EngineState, MemberState
from florence_daemon.engine.protocol import Done
from florence_daemon.queue import Job, Kind

# Upper bounds in seconds: a small model's step on a GPU, a large one's caption on a CPU, a wait for a night's backfill.
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
OUTCOMES = ("done", "failed", "postponed", "withdrawn")
# In the order in which a job goes through them. wait: from the queue until the engine begins with it, loading included.
STAGES = ("wait", "decode", "vision", "text", "write")


@dataclass
class Histogram:
    """How often a value fell below which bound. counts: of each bound, and of what is beyond the last."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def note(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


@dataclass
class Counted:
    """Everything that is counted. A request without sidecars has no stage `write`."""

    jobs: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    images: Counter[Kind] = field(default_factory=Counter)
    tokens_read: int = 0
    tokens_written: int = 0
    stages: dict[tuple[Kind, str], Histogram] = field(
        default_factory=lambda: {
            (kind, stage): Histogram() for kind in Kind for stage in STAGES if (kind, stage) != (Kind.HTTP, "write")
        }
    )
    loads: Histogram = field(default_factory=Histogram)


class Tally:
    """Counts. Threads may share it."""

    def __init__(self) -> None:
        self._counted = Counted()
        self._lock = threading.Lock()

    def answered(self, job: Job, done: Done) -> None:
        """The engine has answered a job."""
        spent = {"decode": done.stages.decode_s, "vision": done.stages.vision_s, "text": done.stages.text_s}
        if job.begun_s is not None and job.first is None:
            spent["wait"] = max(0.0, job.begun_s - job.queued_s)
        with self._lock:
            self._counted.images[job.kind] += job.first is None  # its other try is no other image
            self._counted.tokens_read += sum(answer.prompt_tokens for answer in done.answers)
            self._counted.tokens_written += sum(answer.tokens for answer in done.answers)
            for stage, seconds in spent.items():
                self._counted.stages[job.kind, stage].note(seconds)

    def wrote(self, job: Job, seconds: float) -> None:
        """A job's sidecars were written, or found to be there."""
        with self._lock:
            self._counted.stages[job.kind, "write"].note(seconds)

    def ended(self, job: Job, outcome: str) -> None:
        """A job has come to one of `OUTCOMES`, and is not tried again by itself at once."""
        with self._lock:
            self._counted.jobs[job.kind, outcome] += 1

    def loaded(self, seconds: float) -> None:
        """The model was loaded."""
        with self._lock:
            self._counted.loads.note(seconds)

    def read(self) -> Counted:
        """Everything until now."""
        with self._lock:
            return deepcopy(self._counted)


@dataclass(frozen=True)
class FolderReading:
    """A watched folder. health: ok, degraded or failed. settling: files that may still be written to."""

    path: str
    health: str
    settling: int


@dataclass(frozen=True)
class EngineReading:
    """One engine. resident_bytes: of its process; None when there is none."""

    member: MemberState
    resident_bytes: int | None


@dataclass(frozen=True)
class Reading:
    """Everything that is measured, at one moment. engine: all engines as if they were one."""

    version: str
    model: str
    counted: Counted
    waiting: Mapping[Kind, int]
    running: int
    engine: EngineState
    engines: tuple[EngineReading, ...]
    folders: tuple[FolderReading, ...]
