"""The backfill command on a cluster: find what is to do, hand it out, show how far it is, list what failed."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from florence_daemon.cluster.addresses import Store, Tree, open_trees
from florence_daemon.cluster.answering import Outcome, read_from
from florence_daemon.cluster.due import Due, Errand, Wish
from florence_daemon.cluster.parts import Parts, open_parts
from florence_daemon.cluster.passes import AT_A_TIME
from florence_daemon.cluster.plan import Plan, pack
from florence_daemon.cluster.pool import Cluster
from florence_daemon.cluster.report import Report
from florence_daemon.config import Config
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
    trees, parts, due = _look(wanted, config, prepares=not dry_run)
    if dry_run:
        return _list(due, has_sidecars=parts is None, as_json=as_json)
    plan = Plan(attrs.evolve(config, model=_for_engines(config)), tuple(trees), parts, wanted.batch)
    return _run(due, plan, address, wanted, as_json=as_json)


def estimate_here(wanted: Wanted, config: Config, gpus: int | None, *, as_json: bool) -> int:
    """Say how long it would take this machine, and so many GPUs, without any cluster; return the exit code."""
    trees, _, due = _look(wanted, config, prepares=False)
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


def _look(wanted: Wanted, config: Config, *, prepares: bool) -> tuple[list[Tree], Parts | None, Due]:
    """Where the pictures are, where results go if that is elsewhere, and what is due. prepares: that place is made."""
    if wanted.overwrite not in ("never", "always"):
        raise UsageError(f"--overwrite {wanted.overwrite} needs the ledger of one machine; with --ray, never or always")
    if wanted.to is not None and wanted.overwrite == "always":
        raise UsageError("--overwrite always and --to do not go together: give a new place for new results")
    trees = open_trees(wanted.addresses)
    parts = None if wanted.to is None else open_parts(wanted.to, wanted.form or "parquet")
    done: frozenset[str] = frozenset()
    if parts is not None and prepares:
        parts.prepare()
    if parts is not None:
        done = parts.done()
    wish = Wish(wanted.outputs, wanted.overwrite == "always", wanted.given, is_apart=parts is not None)
    return trees, parts, Due(trees, wish, config, done=done, on_unreadable=_say_unreadable)


def _for_engines(config: Config) -> Any:
    """The model as each engine of the cluster has it: in itself, on what Ray gives to it, until its work is done."""
    return attrs.evolve(config.model, server=(), device="auto", idle_unload_s=-1)


def _run(due: Due, plan: Plan, address: str, wanted: Wanted, *, as_json: bool) -> int:
    errands = due.errands(cleans=True)
    first = next(errands, None)
    if first is None:
        _say("nothing to do: every picture has its captions")
        return 0
    with ExitStack() as stack:
        report = stack.enter_context(closing(Report(wanted.report)))
        cluster = stack.enter_context(closing(Cluster(address, wanted.engine_cpus)))
        signals = StopSignal()
        others = itertools.takewhile(lambda _: not signals.is_set, errands)
        parcels, due_count, refused = _hand_in(cluster, itertools.chain([first], others), plan.batch // AT_A_TIME)
        if parcels:
            _say(f"{due_count} images, {cluster.places()}")
        progress = open_progress(due_count + len(refused))
        try:
            _take(refused, progress, report, as_json=as_json)
            for outcomes in cluster.run(plan, parcels):
                _take(outcomes, progress, report, as_json=as_json)
                if signals.is_set:
                    break
        except KeyboardInterrupt:
            signals.is_set = True
        finally:
            progress.close()
    for path, reason in report.failures:
        _say(f"{printable(path)}: {printable(reason)}")
    if signals.is_set:
        _say("interrupted; the same command takes up there")
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if report.failures else 0


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
        progress.advance(failed=outcome.error is not None)
        if outcome.error is not None:
            report.add(outcome.image, outcome.error)
        if as_json:
            print(json.dumps(_as_json(outcome)), flush=True)


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
        line = f"{printable(image.path)} -> {', '.join(map(printable, sidecars))}" if sidecars else image.path
        print(json.dumps({"image": image.path, "sidecars": sidecars}) if as_json else line)
    _say(f"{count} images would be captioned")
    return 0


def _say_unreadable(error: OSError) -> None:
    _say(f"{error.filename}: cannot be looked into: {error.strerror or error}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
