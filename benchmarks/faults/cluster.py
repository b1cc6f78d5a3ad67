"""Ray nodes on this machine, each in a network namespace of its own, and what is lost when some are killed.

    python -m benchmarks.faults.cluster [--pictures N] [--fault engine|worker|node|driver|none] [--rounds N]

prints for each fault how many pictures had no caption in the end, and how many were captioned more than once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings, read_log
from benchmarks.faults.pictures import count_sidecars, is_captioned_rightly, sidecar, write_jpegs
from benchmarks.faults.process import environment, wait_for
from florence_daemon.demo_pictures import Shape, draw_shapes, encode_picture

ROOT = Path(__file__).parents[2]
# Addresses that are nobody's: TEST-NET-2 of RFC 5737.
NETWORK = "198.51.100"
OBJECTS_BYTES = 100_000_000
ASKS = ("--prompt", "CAPTION", "--ext", "txt")
COLOURS = ("red", "blue", "green", "yellow")
FORMS = ("circle", "square")
FAULTS = ("none", "engine", "worker", "node", "driver")
JOINED = re.compile(r"Ray runtime started")
HEAD = re.compile(r"ray start --address='([^']+)'")


class Node:
    """A Ray node: `ray start` in the foreground, with all that it starts. namespace: of the network; None for ours."""

    def __init__(
        self, directory: Path, *, cpus: int, ip: str, head: str | None = None, namespace: str | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """head: the address of the node to join; None makes this one the head."""
        self.namespace = namespace
        self.environment = environment(directory, {**cluster_environment(directory), **(variables or {})})
        self.log = directory / f"node-{ip}.log"
        role = ["--head", "--port=0", "--include-dashboard=false"] if head is None else [f"--address={head}"]
        # Ray's sockets lie in its directory, and their paths may have 107 bytes.
        self._temporary = Path(tempfile.mkdtemp(prefix="fd-ray-", dir="/tmp"))
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *role, f"--node-ip-address={ip}"),
            *(f"--num-cpus={cpus}", f"--object-store-memory={OBJECTS_BYTES}", "--disable-usage-stats", "--block"),
            *([f"--temp-dir={self._temporary}"] if head is None else []),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._inside(), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        self._wait_until_it_runs()
        self.address = head or self._head_address()

    def run(self, *arguments: str, log: Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        """Start `florence-daemon ARGUMENTS` on this node; what it says goes to `log`."""
        with log.open("wb") as file:
            return subprocess.Popen(
                [*self._inside(), sys.executable, "-m", "florence_daemon", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self.environment,
                cwd=cwd,
                start_new_session=True,
            )

    def workers(self) -> list[int]:
        """The processes in which engines of a run are held."""
        return [pid for pid in descendants(self.process.pid) if "MapWorker" in _title(pid)]

    def engines(self) -> list[int]:
        """The engine processes themselves."""
        return [
            child for worker in self.workers() for child in descendants(worker) if "answer_requests" in _title(child)
        ]

    def kill(self) -> None:
        """End it and all that it started, as a power cut does."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            kill(pid)
        self.process.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _inside(self) -> list[str]:
        return [] if self.namespace is None else ["ip", "netns", "exec", self.namespace]

    def _text(self) -> str:
        return self.log.read_text(errors="replace")

    def _wait_until_it_runs(self) -> None:
        def runs() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"ray start ended at once:\n{self._text()[-2000:]}")
            return JOINED.search(self._text()) is not None

        try:
            wait_for(runs, 180, "ray start", every_s=0.1)
        except BaseException:
            self.kill()
            raise

    def _head_address(self) -> str:
        found = wait_for(lambda: HEAD.search(self._text()), 60, "the head's address")
        return found[1] if found is not None else ""


def cluster_environment(directory: Path) -> dict[str, str]:
    """What all nodes of a cluster and its drivers share: the token, and where this very program is."""
    token = directory / "ray-token"
    if not token.exists():
        token.write_text(os.urandom(32).hex())
    paths = (str(ROOT / "benchmarks" / "faults" / "in_every_process"), str(ROOT))
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A worker that nobody has used yet holds memory and helps nobody here.
        "RAY_enable_worker_prestart": "0",
        "PYTHONPATH": os.pathsep.join((*paths, os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep),
    }


@cache
def why_no_namespaces() -> str:
    """Why this machine gives no network namespaces; empty when it does."""
    if shutil.which("ip") is None:
        return "needs ip (iproute2)"
    name = f"fd-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"this machine refuses a network namespace: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


@contextlib.contextmanager
def one_node(
    directory: Path, cpus: int = 2, fake: FakeSettings | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[Node]:
    """A cluster of one node on this machine's own network, which nobody else can reach. variables: its environment."""
    more = {**(variables or {}), **(fake.as_environment() if fake else {})}
    node = Node(directory, cpus=cpus, ip="127.0.0.1", variables=more)
    try:
        yield node
    finally:
        node.kill()


@contextlib.contextmanager
def two_nodes(directory: Path, cpus: int = 1, fake: FakeSettings | None = None) -> Iterator[tuple[Node, Node]]:
    """A cluster of two nodes, each in a network namespace; the first is the head, and where the driver runs."""
    names = [f"fd-{os.getpid()}-{number}" for number in (1, 2)]
    variables = fake.as_environment() if fake else None
    nodes: list[Node] = []
    with _joined_namespaces(names):
        try:
            for number, name in enumerate(names, 1):
                head = nodes[0].address if nodes else None
                ip = f"{NETWORK}.{number}"
                nodes.append(Node(directory, cpus=cpus, ip=ip, head=head, namespace=name, variables=variables))
            yield nodes[0], nodes[1]
        finally:
            for node in reversed(nodes):
                node.kill()


@contextlib.contextmanager
def _joined_namespaces(names: Sequence[str]) -> Iterator[None]:
    """Two network namespaces with a cable between them."""
    ends = [f"fdv{os.getpid()}-{number}" for number in (1, 2)]
    made: list[str] = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        _ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            _ip("-n", name, "addr", "add", f"{NETWORK}.{number}/24", "dev", end)
            for device in ("lo", end):
                _ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in made:
            _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def descendants(pid: int) -> list[int]:
    """The processes below one, those of every depth."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, pending = [], [pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def kill(pid: int) -> None:
    """End a process at once, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


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


def write_drawings(folder: Path, count: int) -> None:
    """Pictures that the demo model has something to say of, each another."""
    for number in range(count):
        chance = random.Random(number)
        left, top = chance.randrange(20, 200), chance.randrange(20, 150)
        shape = Shape(COLOURS[number % 4], FORMS[number // 4 % 2], (left, top, left + 120, top + 120))
        content = encode_picture(draw_shapes((360, 300), [shape]).image, "JPEG")
        (folder / f"{number:05}.jpg").write_bytes(content)


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
