"""How it scales: engines, servers, machines; decoding, bookkeeping, faults; and docs/scale.md, which says it.

    python -m benchmarks.scale                    # everything, printed as JSON
    python -m benchmarks.scale --only engines     # some rows
    python -m benchmarks.scale --quick            # a trial of all: does it run?
    python -m benchmarks.scale --write            # and write docs/scale.json and docs/scale.md
    python -m benchmarks.scale --only --write     # write the page anew, measure nothing

What each row found is kept in docs/scale.json with its date and machine. A row that fails says why on the page, and the
others go on; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.progress import say
from benchmarks.scaling.cluster import beside_ray
from benchmarks.scaling.decoding import decoding
from benchmarks.scaling.engines import ceiling, several_engines
from benchmarks.scaling.estimating import estimating
from benchmarks.scaling.faults import faults
from benchmarks.scaling.findings import Found, find, keep, load
from benchmarks.scaling.page import write_page
from benchmarks.scaling.servers import servers


@dataclass(frozen=True)
class Row:
    """Something to measure. minutes: about what it takes on two cores. run: takes a directory of its own."""

    title: str
    minutes: float
    run: Callable[..., dict[str, Any]]


ROWS = {
    "engines": Row("pictures/s with 1, 2 and 4 engines", 2.0, several_engines),
    "ceiling": Row("what one backfill can feed", 0.5, ceiling),
    "decoding": Row("one core's rate for photographs", 0.5, decoding),
    "servers": Row("through 1 and 2 servers", 1.0, servers),
    "ray": Row("Ray beside a backfill of one machine", 2.0, beside_ray),
    "faults": Row("a server, an engine, a worker, a node and the driver killed", 3.0, faults),
    "estimate": Row("an estimate and what came of it", 1.0, estimating),
}


def main() -> int:
    """Measure what was asked for; 1 when something could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--quick", action="store_true", help="few pictures: a trial, not a measurement")
    parser.add_argument("--write", action="store_true", help="write docs/scale.json and docs/scale.md")
    arguments = parser.parse_args()
    if arguments.quick and arguments.write:
        parser.error("--quick measures nothing that is worth writing down")
    found = measure(list(ROWS) if arguments.only is None else arguments.only, quick=arguments.quick)
    print(json.dumps({name: asdict(each) for name, each in found.items()}, ensure_ascii=False, indent=1))
    if arguments.write:
        keep(found)
        write_page(load())
    return 1 if any(each.error for each in found.values()) else 0


def measure(names: Sequence[str], *, quick: bool) -> dict[str, Found]:
    """Run these rows, one after the other, and say how it goes on."""
    left = {name: ROWS[name].minutes for name in names}
    found = {}
    for name in names:
        say(f"{name}: {ROWS[name].title}" + ("" if quick else f"; about {sum(left.values()):.0f} min left"))
        with tempfile.TemporaryDirectory(prefix="scale-") as directory:
            found[name] = find(partial(ROWS[name].run, Path(directory), quick=quick))
        say(f"{name}: {found[name].error or found[name].figures}; took {found[name].took_s:.0f} s")
        del left[name]
    return found


if __name__ == "__main__":
    sys.exit(main())
