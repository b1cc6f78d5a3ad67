"""Requests that nobody should send, thousands of them, while one client goes on asking properly."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.faults.clients import CONFIG, Load, ask_together
from benchmarks.faults.process import DaemonProcess
from tests.http.fuzz import Case, cases, is_fair, send

SENDERS = 8


@dataclass(frozen=True)
class Malformed:
    """How it went. statuses: how often each was answered; unfair: a 5xx, or no answer to a whole request.

    proper: what the proper client saw meanwhile. tracebacks: in the daemon's log.
    """

    requests: int
    statuses: dict[int, int]
    unfair: tuple[str, ...]
    tracebacks: int
    proper: Load


def send_malformed(
    directory: Path, requests: int, seed: int, say: Callable[[int], None] = lambda count: None
) -> Malformed:
    """Send so many, a few at a time."""
    with DaemonProcess(directory / "home", CONFIG) as daemon:
        place = urlsplit(daemon.url)
        address = (place.hostname or "", place.port or 0)
        is_over = threading.Event()
        with ThreadPoolExecutor(1) as other, ThreadPoolExecutor(SENDERS) as pool:
            proper = other.submit(ask_together, daemon, 1, is_over.is_set, 1.0)
            sent: Counter[int] = Counter()
            unfair: list[str] = []
            for group in _groups(itertools.islice(cases(seed), requests), 500):
                for case, statuses in zip(group, pool.map(lambda case: _send(address, case), group), strict=True):
                    sent.update(statuses)
                    if not is_fair(case, statuses):
                        unfair.append(f"{case.kind}: {statuses} to {case.raw[:200]!r}")
                say(len(group))
            is_over.set()
            load = proper.result()
        return Malformed(requests, dict(sent), tuple(unfair), daemon.text().count("Traceback"), load)


def _send(address: tuple[str, int], case: Case) -> list[int]:
    """Send it; a connection that the server ends is an answer that did not come."""
    try:
        return send(address, case)
    except OSError as error:
        return [] if isinstance(error, ConnectionError) else [599]


def _groups(stream: Iterator[Case], size: int) -> Iterator[list[Case]]:
    while group := list(itertools.islice(stream, size)):
        yield group
