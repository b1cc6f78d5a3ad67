"""What Ray costs beside a backfill of one machine, picture by picture, and from how many pictures on it pays."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.ray_nodes import cluster_environment, one_node
from benchmarks.scaling.backfills import backfill, forget_captions
from benchmarks.scaling.engines import make_files

COUNTS = (100, 1000, 10_000)
# Machines that share the work, where it is asked from how many pictures on Ray pays.
MACHINES = 2


def beside_ray(directory: Path, *, quick: bool) -> dict[str, Any]:
    """The same pictures with and without Ray, by one stand-in engine that answers at once; Ray itself is running."""
    counts = (5, 10) if quick else COUNTS
    trees = {count: make_files(directory / str(count), count) for count in counts}
    plain = {
        count: backfill(directory / "home", [tree], stand_in=FakeSettings()).whole_s for count, tree in trees.items()
    }
    through_ray = {}
    node_home = directory / "node"
    node_home.mkdir()
    with one_node(node_home, cpus=2, fake=FakeSettings()) as node:
        for count in (counts[0], *counts):  # the first one finds no program in the disk's cache, and is not counted
            forget_captions(trees[count])
            through_ray[count] = backfill(
                directory / "driver",
                [trees[count]],
                stand_in=FakeSettings(),
                arguments=["--ray", node.address],
                more=cluster_environment(node_home),
            ).whole_s
    return {
        "machines": MACHINES,
        "runs": [
            {"pictures": count, "plain_s": round(plain[count], 2), "ray_s": round(through_ray[count], 2)}
            for count in counts
        ],
    }


def pays_from(runs: list[dict[str, float]], picture_s: float, machines: int, at_a_time: int) -> int | None:
    """The least number of pictures that so many machines with Ray caption sooner than one without; None for never.

    picture_s: what a picture takes one machine. at_a_time: how many a machine is given at least; fewer are not shared.
    What Ray costs once and for each picture is that of the largest and the smallest run: a straight line through both.
    """
    few, many = runs[0], runs[-1]
    extra_few, extra_many = few["ray_s"] - few["plain_s"], many["ray_s"] - many["plain_s"]
    each_s = (extra_many - extra_few) / (many["pictures"] - few["pictures"])
    once_s = max(0.0, extra_few - each_s * few["pictures"])
    gain_s = picture_s * (1 - 1 / machines) - each_s
    if gain_s <= 0:
        return None
    counts = itertools.count(max(1, math.floor(once_s / gain_s)))
    return next(n for n in counts if once_s + each_s * n < picture_s * (n - busiest(n, machines, at_a_time)))


def busiest(pictures: int, machines: int, at_a_time: int) -> int:
    """How many pictures the machine has that has most of them."""
    batches = math.ceil(pictures / at_a_time)
    most = math.ceil(batches / machines) * at_a_time
    return most - (batches * at_a_time - pictures) if batches % machines == 1 % machines else most
