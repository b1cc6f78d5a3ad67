"""A backfill on two Ray nodes, and what is lost when an engine, a worker, a node or the command is killed.

    python -m benchmarks.faults.cluster [--pictures N] [--fault engine|worker|node|driver|none] [--rounds N]

prints for each fault how many pictures had no caption in the end, and how many were captioned more than once.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings, read_log
from benchmarks.faults.pictures import count_sidecars, is_captioned_rightly, sidecar, write_drawings, write_jpegs
from benchmarks.faults.process import wait_for
from benchmarks.faults.ray_nodes import Node, descendants, kill, one_node, two_nodes, why_no_namespaces

ASKS = ("--prompt", "CAPTION", "--ext", "txt")
FAULTS = ("none", "engine", "worker", "node", "driver")


@dataclass(frozen=True)
class Trial:
    """How a run with a fault went. lost: pictures that have not their own caption in the end.

    twice: inferences beyond one for each picture, begun ones too. written_twice: rows of results beyond one for each.
    at_a_time: pictures that an engine has at a time. killed: engines that the fault took. runs: how often the command
    was given. code: the last one's exit code. seconds: from the first command to the end of the last.
    """

    fault: str
    pictures: int
    lost: int
    twice: int
    written_twice: int
    at_a_time: int
    killed: int
    runs: int
    code: int
    seconds: float

    @property
    def allowed(self) -> int:
        """How many may be done twice: a batch for each engine that the fault took."""
        return self.at_a_time * self.killed


def backfill(node: Node, folder: Path, log: Path, *more: str, batch: int) -> subprocess.Popen[bytes]:
    """Start the command that is tried."""
    how = ("--ray", node.address, "--engine-cpus", "1", "--batch", str(batch))
    return node.run("backfill", str(folder), "--model", "demo", *ASKS, *how, *more, log=log)


def run_trial(
    directory: Path, fault: str, pictures: int, *, batch: int = 16, slow_s: float = 0.1, apart: bool = False
) -> Trial:
    """Caption pictures on two nodes, or on one where no network namespace is to be had, and do harm in the middle.

    slow_s: what the stand-in engine takes for a picture. apart: the results go into Parquet, not beside the pictures.
    """
    folder, results, log = directory / "pictures", directory / "results", directory / "inferences"
    folder.mkdir()
    paths = write_jpegs(folder, range(pictures))
    more = ("--to", str(results)) if apart else ()
    with _nodes(directory, fault, FakeSettings(log=str(log), slow_s=slow_s)) as nodes:
        began_s = time.monotonic()
        running = backfill(nodes[0], folder, directory / "driver-1.log", *more, batch=batch)
        _await_middle(running, lambda: len(captioned(folder, results)) >= pictures // 3)
        killed = _do_harm(fault, nodes, running)
        number = 1
        while (code := running.wait(600)) < 0:
            number += 1
            running = backfill(nodes[0], folder, directory / f"driver-{number}.log", *more, batch=batch)
        seconds = time.monotonic() - began_s
    said = captioned(folder, results)
    right = set(said) if apart else {path.name for path in paths if is_captioned_rightly(path)}
    return Trial(
        fault=fault,
        pictures=pictures,
        lost=pictures - len(right),
        twice=count_twice(log),
        written_twice=len(said) - len(set(said)),
        at_a_time=batch,
        killed=killed,
        runs=number,
        code=code,
        seconds=seconds,
    )


def captioned(folder: Path, results: Path) -> list[str]:
    """The names of the pictures that have a sidecar or a row of results, as often as they have one."""
    beside = [path.with_suffix(".jpg").name for path in folder.glob("*.txt")]
    parts = list(results.glob("part-*.parquet")) if results.exists() else []
    if not parts:
        return beside
    from pyarrow import parquet

    rows = [name for part in parts for name in parquet.read_table(part, columns=["image"])["image"].to_pylist()]
    return beside + [Path(name).name for name in rows]


def _await_middle(running: subprocess.Popen[bytes], is_there: Callable[[], bool]) -> None:
    wait_for(lambda: is_there() or running.poll() is not None, 600, "a third of the pictures", every_s=0.1)


def count_other_captions(directory: Path, pictures: int) -> int:
    """Caption pictures with the demo model, on two nodes of which one is killed, and by one machine; count differences.

    What has no caption differs too.
    """
    alone, spread = directory / "alone", directory / "spread"
    for folder in (alone, spread):
        folder.mkdir()
        write_drawings(folder, pictures)
    with two_nodes(directory, 1) as (first, second):
        running = backfill(first, spread, directory / "driver.log", batch=8)
        _await_middle(running, lambda: count_sidecars(spread) >= pictures // 3)
        second.kill()
        running.wait(900)
        plain = first.run("backfill", str(alone), "--model", "demo", *ASKS, log=directory / "alone.log")
        plain.wait(900)
    return sum(_text(sidecar(alone / path.name)) != _text(sidecar(path)) for path in spread.glob("*.jpg"))


def _text(path: Path) -> str | Path:
    """What it holds; the path itself, which is like no other, when it is not there."""
    return path.read_text() if path.exists() else path


def count_twice(log: Path) -> int:
    """Inferences beyond one for each picture: what an engine had begun and another began again."""
    begun = Counter(each.picture for each in read_log(log) if each.end == "begun")
    return sum(begun.values()) - len(begun)


@contextlib.contextmanager
def _nodes(directory: Path, fault: str, fake: FakeSettings) -> Iterator[list[Node]]:
    if why_no_namespaces():
        if fault == "node":
            raise AssertionError(why_no_namespaces())
        with one_node(directory, 2, fake) as node:
            yield [node]
        return
    with two_nodes(directory, 1, fake) as nodes:
        yield list(nodes)


def _do_harm(fault: str, nodes: Sequence[Node], driver: subprocess.Popen[bytes]) -> int:
    """Kill what the fault says; return how many engines it took along."""
    harms: dict[str, Callable[[], int]] = {
        "none": lambda: 0,
        "engine": lambda: _kill_all(nodes[-1].engines()[:1]),
        "worker": lambda: _kill_all(nodes[-1].workers()[:1]),
        "node": lambda: _kill_node(nodes[-1]),
        "driver": lambda: _kill_driver(driver, nodes),
    }
    return harms[fault]()


def _kill_all(pids: Sequence[int]) -> int:
    for pid in pids:
        kill(pid)
    return len(pids)


def _kill_node(node: Node) -> int:
    count = len(node.workers())
    node.kill()
    return count


def _kill_driver(driver: subprocess.Popen[bytes], nodes: Sequence[Node]) -> int:
    count = sum(len(node.workers()) for node in nodes)
    for pid in [driver.pid, *descendants(driver.pid)]:
        kill(pid)
    return count


def main() -> None:
    """Try each fault and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--fault", choices=FAULTS, action="append")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    for fault in given.fault or FAULTS:
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as directory:
                trial = run_trial(Path(directory), fault, given.pictures)
            print(
                f"{trial.fault}: {trial.pictures} pictures, {trial.lost} lost, {trial.twice} done twice "
                f"(at most {trial.allowed}), {trial.killed} engines killed, {trial.runs} runs, exit code {trial.code}, "
                f"{trial.seconds:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
