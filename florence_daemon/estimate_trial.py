"""The trial of an estimate: a sample takes the road of a backfill on this machine, but for its last step, writing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import fmean

import attrs

from florence_daemon.config import Config
from florence_daemon.daemon import Works
from florence_daemon.engine.protocol import Ask, Done, Stages
from florence_daemon.engine.sharing import allowed_processors
from florence_daemon.errors import CheckpointError, FlorenceError, PoorAnswer, Stopping
from florence_daemon.estimate import SAMPLE, Measured
from florence_daemon.folders.asking import asks_of
from florence_daemon.folders.ledger import Ledger
from florence_daemon.quality import other_asks, reasons_against, with_others
from florence_daemon.queue import Image, Job, JobQueue, Kind
from florence_daemon.reporting import Progress
from florence_daemon.worker import reason_of

# Pictures that are captioned before the time counts: memory is taken, kernels are chosen.
WARM_UP = 2
# A sample that takes less is timed again, for within a second or two what else the machine does weighs too much.
LEAST_S = 5.0
# Pictures under way while it is timed again: the next pass begins before the last one ends, as a backfill has no gaps.
AHEAD = 4 * SAMPLE

# Where several engines work, others are loaded only while work waits for them.
KEEPS_BUSY = 32


@dataclass(frozen=True)
class Subject:
    """A picture that may be tried. read: gets its bytes from where they are; None for one that has a path."""

    image: Image
    read: Callable[[], bytes] | None = None


Ended = tuple[Subject, "Done | FlorenceError"]


def measure(
    config: Config, warm_up: Sequence[Subject], sample: Sequence[Subject], most: int, begin: Callable[[int], Progress]
) -> Measured:
    """Load the model, warm it up, and time a sample; again, until it took `LEAST_S`, but no more than `most` times.

    begin: shows how far the first pass is. Raises: CheckpointError, Stopping.
    """
    config = attrs.evolve(config, model=attrs.evolve(config.model, idle_unload_s=-1))
    with _open_trial(config) as trial:
        began_s = time.perf_counter()
        trial.warm_up(warm_up)
        loaded_s = time.perf_counter()
        passes = Passes(sample, most, time.perf_counter)
        stages, failures = listen(trial.answers(passes, len(sample)), passes, begin(len(sample)))
        ended_s = time.perf_counter()
        states = [each.state for each in trial.works.engine.members() if each.state.name == "loaded"]
        model = trial.works.models.name
    return Measured(
        model=model,
        device=", ".join(dict.fromkeys(str(state.device) for state in states)),
        engines=max(1, len(states)),
        cores=len(allowed_processors()),
        load_s=loaded_s - began_s,
        seconds=ended_s - loaded_s,
        passes=passes.begun,
        stages=tuple(each for path, each in stages.items() if path not in failures),
        failures=failures,
        fetch_s=trial.fetch_s(),
    )


def listen(answers: Iterable[Ended], passes: Passes, progress: Progress) -> tuple[dict[str, Stages], dict[str, str]]:
    """What each picture took in its first pass, which is the one that is shown; and why others have no captions."""
    stages: dict[str, Stages] = {}
    failures: dict[str, str] = {}
    with ExitStack() as showing:
        showing.callback(progress.close)
        for subject, said in answers:
            passes.ended += 1
            if isinstance(said, Done):
                stages.setdefault(subject.image.path, said.stages)
            else:
                failures[subject.image.path] = reason_of(said, subject.image.path)
            if passes.ended <= len(passes.sample):
                progress.advance(failed=not isinstance(said, Done))
            if passes.ended == len(passes.sample):
                showing.close()
    return stages, failures


@contextmanager
def _open_trial(config: Config) -> Iterator[Trial]:
    """Engine and worker as a backfill has them, with a ledger of their own that is thrown away."""
    ledger = Ledger()
    # Jobs without sidecars count as requests, of which a backfill's may fill half of the places.
    works = Works(config, JobQueue(1000), ledger)
    threads = ThreadPoolExecutor(KEEPS_BUSY, thread_name_prefix="fetch")
    works.start()
    try:
        yield Trial(works, config, threads)
    finally:
        # The engine ends before the threads do, which wait for its answers.
        threads.shutdown(wait=False, cancel_futures=True)
        works.stop(at_once=True)
        threads.shutdown()
        ledger.close()


def _said(future: Future[Done], first: Done | None) -> Done | FlorenceError:
    """A picture's answers, laid over its first ones, or what came instead. Raises: CheckpointError, Stopping."""
    try:
        done = future.result()
    except (CheckpointError, Stopping):
        raise
    except FlorenceError as error:
        return error
    return done if first is None else with_others(first, done)


class Passes:
    """A sample again and again, `most` times at most, while all that has begun is likely to end before `LEAST_S`.

    clock: seconds. begun: how many passes. ended: pictures of all of them; whoever iterates counts it up.
    """

    def __init__(self, sample: Sequence[Subject], most: int, clock: Callable[[], float]) -> None:
        self.sample = sample
        self._most = most
        self._clock = clock
        self._began_s = clock()
        self.begun = 0
        self.ended = 0

    def __iter__(self) -> Iterator[Subject]:
        while not self.begun or (self.begun < self._most and self._likely_s() < LEAST_S):
            self.begun += 1
            yield from self.sample

    def _likely_s(self) -> float:
        """When all that has begun will have ended, at the pace so far."""
        return (self._clock() - self._began_s) * self.begun * len(self.sample) / max(1, self.ended)


class Trial:
    """Pictures on the road of a backfill. threads: fetch those that are elsewhere."""

    def __init__(self, works: Works, config: Config, threads: ThreadPoolExecutor) -> None:
        self.works = works
        self._config = config
        self._threads = threads
        self._fetched_s: list[float] = []

    def warm_up(self, subjects: Sequence[Subject]) -> None:
        """Caption these; where there are several engines, until each has its model."""
        for _ in self.answers(subjects):
            pass
        many = list(subjects) * (KEEPS_BUSY // len(subjects))
        while len(self.works.engine.members()) > 1:
            for _ in self.answers(many):
                pass
            if not any(each.state.name == "loading" for each in self.works.engine.members()):
                break
        self._fetched_s.clear()

    def fetch_s(self) -> float:
        """Seconds that a picture took on its way here, several at a time; 0 for those that are here."""
        return fmean(self._fetched_s) if self._fetched_s else 0.0

    def answers(self, subjects: Iterable[Subject], at_first: int = SAMPLE) -> Iterator[Ended]:
        """Each picture with its answers, or why there are none; what is no caption is asked for once more.

        at_first: how many are begun before half as many have ended; then it is known how long all of them will take.
        Raises: CheckpointError, Stopping.
        """
        running: dict[Future[Done], tuple[Subject, Done | None]] = {}
        left, begun, answered = iter(subjects), 0, 0
        while True:
            room = AHEAD - len(running) if 2 * answered >= at_first else at_first - begun
            for subject in itertools.islice(left, max(0, room)):
                begun += 1
                running[self._submit(subject, asks_of(subject.image.outputs))] = subject, None
            if not running:
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                subject, first = running.pop(future)
                said = _said(future, first)
                if isinstance(said, Done) and first is None:
                    asks = asks_of(subject.image.outputs)
                    if others := other_asks(asks, said, self._config.model):
                        running[self._submit(subject, others)] = subject, said
                        continue
                if isinstance(said, Done) and (reasons := reasons_against(said)):
                    said = PoorAnswer(reasons)
                answered += 1
                yield subject, said

    def _submit(self, subject: Subject, asks: tuple[Ask, ...]) -> Future[Done]:
        if subject.read is None:
            return self._put(subject.image.path, asks)
        return self._threads.submit(self._fetch, subject.read, asks)

    def _fetch(self, read: Callable[[], bytes], asks: tuple[Ask, ...]) -> Done:
        began_s = time.perf_counter()
        content = read()
        self._fetched_s.append(time.perf_counter() - began_s)
        return self._put(content, asks).result()

    def _put(self, picture: str | bytes, asks: tuple[Ask, ...]) -> Future[Done]:
        job = Job(Kind.BACKFILL, picture, asks)
        self.works.queue.put(job)
        return job.future
