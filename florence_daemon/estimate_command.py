"""The backfill command's --estimate: count what is due, try a sample of it, say how long all of it would take."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from florence_daemon.backfill import Backfill
from florence_daemon.backfill_command import say_unreadable
from florence_daemon.config import Config
from florence_daemon.errors import FlorenceError
from florence_daemon.estimate import SAMPLE, Count, Estimate, Measured, Reservoir
from florence_daemon.estimate_report import estimate_lines
from florence_daemon.estimate_trial import WARM_UP, Subject, measure
from florence_daemon.logs import printable
from florence_daemon.reporting import LINE_S, open_progress

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


class Source(Protocol):
    """Where pictures are found. found: how many the look has come upon so far, whether they need something or not."""

    @property
    def found(self) -> int:
        """How many."""

    def subjects(self) -> Iterator[tuple[Subject, FlorenceError | None]]:
        """Each picture that needs something, with the reason if it cannot have it."""


class Paths:
    """The pictures that a backfill of this machine finds."""

    def __init__(self, work: Backfill) -> None:
        self._work = work

    @property
    def found(self) -> int:
        """See `Source`."""
        return self._work.found

    def subjects(self) -> Iterator[tuple[Subject, FlorenceError | None]]:
        """See `Source`."""
        for image, reason in self._work.images():
            yield Subject(image), reason
        say_unreadable(self._work)


def run_estimate(source: Source, config: Config, gpus: int | None, *, as_json: bool) -> int:
    """Print how long all of `source` would take here, and with so many GPUs; return the exit code.

    Raises: FlorenceError when the model cannot be had.
    """
    # The failures are listed below; a line for each would run through the progress bar.
    logging.getLogger("florence_daemon.job_log").setLevel(logging.ERROR)
    try:
        count, drawn = _count_and_draw(source)
        measured = _try_out(config, drawn, count.due) if drawn else None
    except KeyboardInterrupt:
        _say("stopped; nothing was written")
        return EXIT_INTERRUPTED
    estimate = Estimate(count, measured)
    for path, reason in measured.failures.items() if measured is not None else ():
        _say(f"{printable(path)}: {printable(reason)}")
    print(json.dumps(estimate.as_json(gpus)) if as_json else "\n".join(estimate_lines(estimate, gpus)))
    return EXIT_FAILED if drawn and estimate.span() is None else 0


def _count_and_draw(source: Source) -> tuple[Count, list[Subject]]:
    """Count the pictures, and draw some of those that are due, in one look at each directory."""
    drawn: Reservoir[Subject] = Reservoir(WARM_UP + SAMPLE)
    refused = 0
    next_line_s = time.monotonic() + LINE_S
    for subject, reason in source.subjects():
        if reason is None:
            drawn.offer(subject)
        else:
            refused += 1
        if time.monotonic() >= next_line_s:
            next_line_s += LINE_S
            _say(f"{source.found:,} pictures found so far, {drawn.offered:,} of them to be captioned")
    return Count(source.found, drawn.offered, refused), drawn.draw()


def _try_out(config: Config, drawn: Sequence[Subject], due: int) -> Measured:
    """Caption the sample; where there are no others, its first pictures warm up too.

    It is timed again only as far as that looks at no more pictures than the backfill would.
    """
    sample = drawn[-SAMPLE:]
    what = f"asking {', '.join(config.model.server)}" if config.model.server else f"loading {config.model.name}"
    _say(f"{what}, and captioning {len(sample)} of them without writing anything")
    return measure(config, drawn[:WARM_UP], sample, due // len(sample), open_progress)


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
