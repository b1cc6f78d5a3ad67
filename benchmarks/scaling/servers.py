"""A backfill through one server and two, each a real daemon on a real socket; what it sends of each picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.process import DaemonProcess
from benchmarks.photographs import SIZE_PX, make_photographs
from benchmarks.scaling.backfills import Backfilled, backfill, forget_captions
from benchmarks.scaling.decoding import SIDE_PX
from benchmarks.scaling.engines import SLOW_S, make_files
from benchmarks.scaling.relay import Relay
from florence_daemon.engine.parcel import resize

SENDS = ("original", "resized")


def servers(directory: Path, *, quick: bool) -> dict[str, Any]:
    """Through stand-ins with a fixed time for each picture; and photographs, as they are and resized."""
    waiting = {}
    for count in (1, 2):
        tree = make_files(directory / f"waiting-{count}", 15 if quick else 250 * count)
        with _daemons(directory / f"waiting-{count}-servers", count, FakeSettings(slow_s=SLOW_S)) as urls:
            found = backfill(directory / "home", [tree], arguments=_through(urls))
        waiting[str(count)] = {"pictures": found.captioned, "failed": found.failed, "per_s": round(found.per_s, 1)}
    tree = directory / "photographs"
    make_photographs(3 if quick else 24, tree, (640, 480) if quick else SIZE_PX)
    sent: dict[str, Any] = {}
    with _daemons(directory / "demo-server", 1, None) as urls:
        for send in SENDS:
            for _ in range(2):  # the first pass loads the model, and reads the files from the disk
                forget_captions(tree)
                took, sent_bytes = _count(directory / "home", tree, urls[0], send)
            sent[send] = {
                "pictures": took.captioned,
                "failed": took.failed,
                "per_s": round(took.per_s, 2),
                "bytes": round(sent_bytes / max(took.captioned, 1)),
            }
    parcels = [resize(os.fspath(path), SIDE_PX, fast=False)[0].content for path in sorted(tree.glob("*.jpg"))]
    return {
        "slow_s": SLOW_S,
        "size_px": list(SIZE_PX),
        "waiting": waiting,
        "sent": sent,
        "side_px": SIDE_PX,
        "parcel_bytes": round(fmean(map(len, parcels))),
    }


def _count(home: Path, tree: Path, url: str, send: str) -> tuple[Backfilled, int]:
    with closing(Relay(urlsplit(url).port or 0)) as relay:
        took = backfill(home, [tree], model={"send": send}, arguments=_through([relay.url]))
        return took, relay.sent_bytes


def _through(urls: Sequence[str]) -> list[str]:
    return [word for url in urls for word in ("--server", url)]


@contextmanager
def _daemons(directory: Path, count: int, stand_in: FakeSettings | None) -> Iterator[list[str]]:
    """So many daemons that watch no folder, and their addresses."""
    with ExitStack() as stack:
        config = json.dumps({"model": {"name": "demo"}})
        yield [
            stack.enter_context(DaemonProcess(directory / str(number), config, fake=stand_in)).url
            for number in range(count)
        ]
