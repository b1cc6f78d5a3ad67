"""Ray nodes on this machine: one on its own network, or two, each in a network namespace."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.process import environment, wait_for

ROOT = Path(__file__).parents[2]
# Addresses that are nobody's: TEST-NET-2 of RFC 5737.
NETWORK = "198.51.100"
OBJECTS_BYTES = 100_000_000
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
