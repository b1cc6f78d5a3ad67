"""The backfill command on a cluster: find what is to do, hand it out, show how far it is, list what failed."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from florence_daemon.cluster.addresses import Store, Tree, open_trees
from florence_daemon.cluster.answering import Outcome, read_from
from florence_daemon.cluster.due import Due, Errand, Wish
from florence_daemon.cluster.parts import Parts, Turn, open_parts
from florence_daemon.cluster.passes import AT_A_TIME
from florence_daemon.cluster.plan import Plan, pack
from florence_daemon.cluster.pool import Cluster
from florence_daemon.cluster.report import Report
from florence_daemon.config import Config, ServerConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import FlorenceError, UsageError
from florence_daemon.estimate_command import run_estimate
from florence_daemon.estimate_trial import Subject
from florence_daemon.folders.sidecars import sidecar_path
from florence_daemon.logs import printable
from florence_daemon.reporting import open_progress
from florence_daemon.signals import StopSignal
from florence_daemon.worker import reason_of

EXIT_SOME_FAILED = 1
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; see `backfill --help`. given: what no `.florence.yaml` may change."""

    addresses: tuple[str, ...]
    outputs: tuple[OutputConfig, ...]
    given: frozenset[str] = frozenset()
    overwrite: str = "never"
    to: str | None = None
    form: str | None = None
    batch: int = 64
    engine_cpus: int | None = None
    report: Path | None = None


def run_on_cluster(wanted: Wanted, config: Config, address: str, *, dry_run: bool, as_json: bool) -> int:
    """Caption everything on the cluster at `address`; return the exit code."""
    trees, parts = _open(wanted)
    if dry_run:
        done = frozenset() if parts is None else parts.done()
        due = _due(wanted, config, trees, done, _say_unreadable)
        return _list(due, has_sidecars=parts is None, as_json=as_json)
    report = Report(wanted.report)
    try:
        with closing(report), nullcontext() if parts is None else Turn(parts) as turn:
            done = frozenset() if turn is None else turn.done
            due = _due(wanted, config, trees, done, lambda error: report.add(str(error.filename), _unlisted(error)))
            is_stopped = _run(
                due,
                Plan(_for_engines(config), tuple(trees), parts, wanted.batch),
                address,
                wanted,
                report,
                as_json=as_json,
            )
    except KeyboardInterrupt:
        is_stopped = True
    finally:
        for path, reason in report.failures:
            _say(f"{printable(path)}: {printable(reason)}")
    if is_stopped:
        _say("interrupted; the same command takes up there")
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if report.failures else 0


def estimate_here(wanted: Wanted, config: Config, gpus: int | None, *, as_json: bool) -> int:
    """Say how long it would take this machine, and so many GPUs, without any cluster; return the exit code."""
    trees, parts = _open(wanted)
    done = frozenset() if parts is None else parts.done()
    due = _due(wanted, config, trees, done, _say_unreadable)
    return run_estimate(Addresses(trees, due), config, gpus, as_json=as_json)


class Addresses:
    """The pictures at some addresses, those in stores with the way to their bytes; an `estimate_command.Source`."""

    def __init__(self, trees: Sequence[Tree], due: Due) -> None:
        self._trees = trees
        self._due = due

    @property
    def found(self) -> int:
        """How many the look has come upon so far."""
        return self._due.found

    def subjects(self) -> Iterator[tuple[Subject, FlorenceError | None]]:
        """Each picture that needs something, with the reason if it cannot have it."""
        for errand, reason in self._due.errands():
            tree = None if errand.store is None else self._trees[errand.store]
            path = errand.image.path
            read = partial(read_from, tree, tree.path_of(path)) if isinstance(tree, Store) else None
            yield Subject(errand.image, read), reason


def _open(wanted: Wanted) -> tuple[list[Tree], Parts | None]:
    """Where the pictures are, and where results go if that is elsewhere. Raises: UsageError, PictureError."""
    if wanted.overwrite not in ("never", "always"):
        raise UsageError(
            f"--overwrite {wanted.overwrite} needs the ledger of one machine: leave out --ray, "
            "or give --overwrite never or always"
        )
    if wanted.to is not None and wanted.overwrite == "always":
        raise UsageError("--overwrite always and --to do not go together: give a new place for new results")
    trees = open_trees(wanted.addresses)
    return trees, None if wanted.to is None else open_parts(wanted.to, wanted.form or "parquet")


def _due(
    wanted: Wanted,
    config: Config,
    trees: Sequence[Tree],
    done: frozenset[str],
    on_unreadable: Callable[[OSError], None],
) -> Due:
    wish = Wish(wanted.outputs, wanted.overwrite == "always", wanted.given, is_apart=wanted.to is not None)
    return Due(trees, wish, config, done=done, on_unreadable=on_unreadable)


def _for_engines(config: Config) -> Config:
    """As each engine of the cluster has it: the model in itself, on what Ray gives to it, until its work is done.

    No token travels with it.
    """
    model = attrs.evolve(config.model, server=(), server_token=None, device="auto", idle_unload_s=-1)
    return attrs.evolve(config, model=model, server=ServerConfig())


def _run(due: Due, plan: Plan, address: str, wanted: Wanted, report: Report, *, as_json: bool) -> bool:
    """Caption what is due; tell whether a signal ended it."""
    errands = due.errands(cleans=True)
    first = next(errands, None)
    if first is None:
        if not report.failures:
            _say("nothing to do: every picture has its captions")
        return False
    with closing(Cluster(address, wanted.engine_cpus)) as cluster:
        cluster.check()
        signals = StopSignal()
        others = itertools.takewhile(lambda _: not signals.is_set, errands)
        parcels, due_count, refused = _hand_in(cluster, itertools.chain([first], others), plan.batch // AT_A_TIME)
        if signals.is_set:
            return True
        if parcels:
            _say(f"{due_count} images, {cluster.places()}")
        with closing(open_progress(due_count + len(refused))) as progress:
            _take(refused, progress, report, as_json=as_json)
            for outcomes in cluster.run(plan, parcels):
                _take(outcomes, progress, report, as_json=as_json)
                if signals.is_set:
                    break
        return signals.is_set


def _hand_in(
    cluster: Cluster, errands: Iterator[tuple[Errand, FlorenceError | None]], size: int
) -> tuple[list[Any], int, list[Outcome]]:
    """Give the cluster all that is to do; return its batches, how many pictures they hold, and what cannot be done.

    Only addresses are held, and by the cluster: of a million pictures this process keeps some thousand numbers.
    """
    parcels: list[Any] = []
    waiting: list[Errand] = []
    refused: list[Outcome] = []
    count = 0
    for errand, reason in errands:
        path = errand.image.path
        if reason is not None:
            refused.append(Outcome(path, error=reason_of(reason, path)))
            continue
        count += 1
        waiting.append(errand)
        if len(waiting) == size:
            parcels.append(cluster.put(len(parcels), pack(waiting)))
            waiting.clear()
    if waiting:
        parcels.append(cluster.put(len(parcels), pack(waiting)))
    return parcels, count, refused


def _take(outcomes: list[Outcome], progress: Any, report: Report, *, as_json: bool) -> None:
    """Count the outcomes of a batch. Raises: FlorenceError for what concerns all pictures."""
    for outcome in outcomes:
        if outcome.ends_it:
            raise FlorenceError(outcome.error or "")
        if outcome.error is not None:
            report.add(outcome.image, outcome.error)
        if as_json:
            print(json.dumps(_as_json(outcome)), flush=True)
    # At once: an estimate after the first picture of a batch would count the time of all for it.
    failed = sum(outcome.error is not None for outcome in outcomes)
    for count, is_failure in ((failed, True), (len(outcomes) - failed, False)):
        if count:
            progress.advance(count, failed=is_failure)


def _as_json(outcome: Outcome) -> dict[str, Any]:
    if outcome.error is not None:
        return {"image": outcome.image, "error": outcome.error}
    return {"image": outcome.image, "results": outcome.results or {}}


def _list(due: Due, *, has_sidecars: bool, as_json: bool) -> int:
    """Print what would be captioned, and where it would be written."""
    count = 0
    for errand, reason in due.errands():
        image = errand.image
        if reason is not None:
            _say(f"{printable(image.path)}: {printable(reason_of(reason, image.path))}")
            continue
        count += 1
        sidecars = [sidecar_path(image.path, output) for output in image.outputs] if has_sidecars else []
        line = " -> ".join(filter(None, (printable(image.path), ", ".join(map(printable, sidecars)))))
        print(json.dumps({"image": image.path, "sidecars": sidecars}) if as_json else line)
    _say(f"{count} images would be captioned")
    return 0


def _say_unreadable(error: OSError) -> None:
    _say(f"{printable(str(error.filename))}: {printable(_unlisted(error))}")


def _unlisted(error: OSError) -> str:
    return f"cannot be looked into: {error.strerror}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
