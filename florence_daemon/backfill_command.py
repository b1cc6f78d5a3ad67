"""The backfill command: run it, show how far it is, list what failed."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

from florence_daemon.backfill import Backfill, Outage, Outcome, open_captioner
from florence_daemon.config import Config
from florence_daemon.errors import DiskFull
from florence_daemon.folders.sidecars import sidecar_path
from florence_daemon.logs import printable
from florence_daemon.peer import first_offer
from florence_daemon.reporting import open_progress
from florence_daemon.signals import StopSignal

EXIT_SOME_FAILED = 1
EXIT_INTERRUPTED = 130


def list_work(work: Backfill, *, as_json: bool) -> int:
    """Print what would be captioned, and where it would be written; return the exit code."""
    count = 0
    for image, reason in work.images():
        if reason is not None:
            _say(f"{printable(image.path)}: {printable(str(reason))}")
            continue
        count += 1
        sidecars = [sidecar_path(image.path, output) for output in image.outputs]
        line = f"{printable(image.path)} -> {', '.join(printable(path) for path in sidecars)}"
        print(json.dumps({"image": image.path, "sidecars": sidecars}) if as_json else line)
    say_unreadable(work)
    _say(f"{count} images would be captioned")
    return 0


def run_backfill(work: Backfill, config: Config, *, as_json: bool) -> int:
    """Caption everything, here or through the servers of the configuration; return the exit code.

    Raises: ServerError when none of them answers.
    """
    # The failures are listed at the end; a line for each would run through the progress bar.
    logging.getLogger("florence_daemon.job_log").setLevel(logging.ERROR)
    if config.model.server:
        first_offer(config.model.server, config.model.server_token)
    total = sum(1 for _ in work.images())
    if not total and say_unreadable(work):
        return EXIT_SOME_FAILED
    if not total:
        _say("nothing to do: every picture has its sidecars")
        return 0
    signals = StopSignal()
    failures: list[Outcome] = []
    full: DiskFull | None = None
    try:
        _run(work, config, total, signals, failures, as_json=as_json)
    except KeyboardInterrupt:
        _say("stopped at once; the same command takes up there")
        return EXIT_INTERRUPTED
    except DiskFull as error:
        full = error
    for failure in failures:
        _say(f"{printable(failure.image.path)}: {printable(failure.reason)}")
    has_unreadable = say_unreadable(work)
    if full is not None:
        _say(f"{printable(str(full))}; free some space, then the same command takes up there")
        return EXIT_SOME_FAILED
    if signals.is_set:
        _say("interrupted; the same command takes up there")
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if failures or has_unreadable else 0


def say_unreadable(work: Backfill) -> bool:
    """List the directories that the last look could not look into; tell whether there are any."""
    for error in work.unreadable:
        _say(f"{printable(os.fsdecode(error.filename))}: cannot be looked into: {error.strerror}")
    return bool(work.unreadable)


def _run(
    work: Backfill,
    config: Config,
    total: int,
    signals: StopSignal,
    failures: list[Outcome],
    *,
    as_json: bool,
) -> None:
    """Run to the end or to the interruption; add the outcomes that are failures to `failures`."""
    progress = open_progress(total)
    is_told = False

    def is_stopped() -> bool:
        """Say so here, in the loop: a signal's handler must not print."""
        nonlocal is_told
        if signals.is_set and not is_told:
            is_told = True
            _say("finishing what runs; once more stops at once")
        return signals.is_set

    try:
        with open_captioner(work, config) as submit:
            for outcome in work.run(submit, is_stopped, Outage(_say) if config.model.server else None):
                progress.advance(failed=outcome.error is not None)
                if outcome.error is not None:
                    failures.append(outcome)
                if as_json:
                    print(json.dumps(_as_json(outcome)), flush=True)
    finally:
        progress.close()


def _as_json(outcome: Outcome) -> dict[str, Any]:
    if outcome.done is None:
        return {"image": outcome.image.path, "error": outcome.reason}
    return {
        "image": outcome.image.path,
        "results": {answer.prompt: answer.result for answer in outcome.done.answers},
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
