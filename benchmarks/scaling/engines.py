"""Pictures a second with one engine, two and four: what is bookkeeping's, and what two processors give."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import write_jpegs
from benchmarks.scaling.backfills import Backfilled, backfill, forget_captions
from florence_daemon.demo_chance import draw_picture
from florence_daemon.demo_pictures import encode_picture

ENGINES = (1, 2, 4)
# What a picture takes of the stand-in: about what a small model takes of a GPU. It uses no processor meanwhile.
SLOW_S = 0.04
SIZE_PX = (640, 480)
# Where Linux keeps files in memory alone.
MEMORY = "/dev/shm"


def several_engines(directory: Path, *, quick: bool) -> dict[str, Any]:
    """The stand-in with a fixed time for each picture, and the demo model on this machine's processor."""
    waiting = {}
    for count in ENGINES:
        tree = make_files(directory / f"waiting-{count}", 15 if quick else 250 * count)
        found = backfill(directory / "home-waiting", [tree], model=devices(count), stand_in=FakeSettings(slow_s=SLOW_S))
        waiting[str(count)] = _figures(found)
    demo = {}
    tree = draw_pictures(directory / "demo", 15 if quick else 600)
    for count in ENGINES:
        forget_captions(tree)
        # As on a user's machine: OpenVINO where it is installed. The first one compiles the model.
        more = {} if quick else {"FLORENCE_DAEMON_MODEL__ENGINE": "auto"}
        demo[str(count)] = _figures(backfill(directory / "home-demo", [tree], model=devices(count), more=more))
    return {"slow_s": SLOW_S, "waiting": waiting, "demo": demo}


def ceiling(directory: Path, *, quick: bool) -> dict[str, Any]:
    """A stand-in that answers at once: what is left is listing, queue, ledger, sidecars and the pipe.

    On a disk with one engine and two, and with everything in memory, where nothing waits for a disk.
    """
    count = 60 if quick else 3000
    found = {}
    for name, engines in (("disk", 1), ("disk, two engines", 2)):
        tree = make_files(directory / name, count)
        took = backfill(directory / "home", [tree], model=devices(engines), stand_in=FakeSettings())
        found[name] = _figures(took)
    if os.access(MEMORY, os.W_OK):
        with tempfile.TemporaryDirectory(dir=MEMORY, prefix="scale-") as memory:
            tree = make_files(Path(memory) / "tree", count)
            found["memory"] = _figures(backfill(Path(memory) / "home", [tree], stand_in=FakeSettings()))
    return {"at_once": found}


def devices(count: int) -> dict[str, Any]:
    """So many engines, as the configuration names them."""
    return {"device": "cpu" if count == 1 else ["cpu"] * count}


def make_files(tree: Path, count: int) -> Path:
    """Small pictures of which each has bytes of its own."""
    tree.mkdir(parents=True)
    write_jpegs(tree, range(count))
    return tree


def draw_pictures(tree: Path, count: int) -> Path:
    """Pictures that the demo model knows."""
    tree.mkdir(parents=True)
    for number in range(count):
        picture = draw_picture(random.Random(number), SIZE_PX)
        (tree / f"{number:05}.jpg").write_bytes(encode_picture(picture.image, "JPEG"))
    return tree


def _figures(found: Backfilled) -> dict[str, Any]:
    return {
        "pictures": found.captioned,
        "failed": found.failed,
        "per_s": round(found.per_s, 1),
        "cpu_ms": None if found.cpu_ms is None else round(found.cpu_ms, 2),
    }
