"""HAProxy as docs/haproxy.cfg sets it up, with other addresses, and many clients that do not try again."""

from __future__ import annotations

import csv
import http.client
import json
import random
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from florence_daemon.demo_answers import true_answer
from florence_daemon.demo_chance import draw_picture
from florence_daemon.demo_pictures import encode_picture
from tests.conftest import RunningDaemon, wait_for

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
CONFIG = Path(__file__).parents[1] / "docs" / "haproxy.cfg"
NAME, TOKEN = "captions.example.org", "all-servers-share-it"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "image/jpeg"}
# What the configuration has, and a test replaces.
CLIENTS, WATCH, SERVERS = "bind :54880", "bind 127.0.0.1:8404", ("192.0.2.11:54880", "192.0.2.12:54880")


class Server:
    """A daemon that can be killed and started again in its place."""

    def __init__(self, home: Path, max_queued: int) -> None:
        self._home = home
        self._config = f"""
model: {{name: demo, idle_unload_s: -1}}
server: {{token: {TOKEN}, allowed_hosts: [{NAME}], max_queued: {max_queued}}}
"""
        self.daemon = RunningDaemon(home, config=self._config)
        self.address = urlsplit(self.daemon.url).netloc

    def start_again(self) -> None:
        """Start it where it was; kill what is left of it."""
        self.daemon.stop(signal.SIGKILL)
        self.daemon = RunningDaemon(self._home, "--port", self.address.rpartition(":")[2], config=self._config)

    def status(self) -> dict[str, Any]:
        """Its own status."""
        found = ask(self.address, "/status")
        assert found.status == 200
        media = found.json()
        assert isinstance(media, dict)
        return media

    def waiting(self) -> int:
        """How many requests wait there for their turn."""
        return int(self.status()["queue"]["http"])

    def at_work(self) -> int:
        """How many requests wait there or run."""
        queue = self.status()["queue"]
        return int(queue["http"] + queue["running"])


class Proxy:
    """A running HAProxy. address: of its captions; log: what it wrote."""

    def __init__(self, directory: Path, servers: Sequence[str]) -> None:
        """servers: the addresses of two."""
        text, self.log = CONFIG.read_text(encoding="utf-8"), directory / "haproxy.log"
        # HAProxy inherits the sockets, so that nobody else takes their ports in between.
        with socket.create_server(("127.0.0.1", 0)) as clients, socket.create_server(("127.0.0.1", 0)) as watch:
            self.address, self._watch = (f"127.0.0.1:{each.getsockname()[1]}" for each in (clients, watch))
            binds = {CLIENTS: "bind fd@3", WATCH: "bind fd@4"}
            for there, here in (binds | dict(zip(SERVERS, servers, strict=True))).items():
                assert text.count(there) == 1, there
                text = text.replace(there, here)
            (directory / "haproxy.cfg").write_text(text, encoding="utf-8")
            with self.log.open("wb") as log:
                # It takes none whose number is above what it reckons to need, and a test run has many open.
                numbers = f"3<&{clients.fileno()} 4<&{watch.fileno()}"
                self.process = subprocess.Popen(
                    ["bash", "-c", f'exec "$0" -db -f "$1" {numbers}', HAPROXY or "haproxy", directory / "haproxy.cfg"],
                    stdout=log,
                    stderr=log,
                    pass_fds=(clients.fileno(), watch.fileno()),
                )

    def servers(self) -> dict[str, dict[str, str]]:
        """What it says of each server: `status` (UP, DOWN), `hrsp_2xx`, `wredis` and more."""
        with urllib.request.urlopen(f"http://{self._watch}/;csv", timeout=60) as response:
            lines = response.read().decode().removeprefix("# ").splitlines()
        rows = [row for row in csv.DictReader(lines) if row["pxname"] == "daemons"]
        return {row["svname"]: row for row in rows if row["svname"] in ("one", "two")}

    def is_up(self, name: str) -> bool:
        """Whether a server's last checks went well. (`UP 1/3` is one that failed once.)"""
        return self.servers()[name]["status"].startswith("UP")

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Said:
    """An answer as it came; the names of headers in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(address: str, path: str, body: bytes | None = None, **headers: str) -> Said:
    """Ask once, on a connection of its own. headers: `Host="nas"`, instead of HEADERS or beside them."""
    connection = http.client.HTTPConnection(address, timeout=300)
    try:
        connection.request("GET" if body is None else "POST", path, body, HEADERS | headers)
        response = connection.getresponse()
        headers = {name.lower(): text for name, text in response.getheaders()}
        return Said(response.status, headers, response.read())
    finally:
        connection.close()


def caption(address: str, picture: bytes) -> Said:
    """Ask once for a caption."""
    return ask(address, "/process_image?prompt=CAPTION", picture)


@dataclass
class Load:
    """Clients that ask again and again, and never a second time for the same."""

    address: str
    pictures: Mapping[bytes, str]  # and their captions
    answers: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def client(self, seed: int) -> None:
        """Ask until the load ends."""
        rng, pictures = random.Random(seed), list(self.pictures)
        while not self._stopped.is_set():
            picture = rng.choice(pictures)
            try:
                said = caption(self.address, picture)
                problem = "" if said.status == 200 else f"{said.status}: {said.body.decode(errors='replace')}"
                if not problem and said.json() != {"result": self.pictures[picture]}:
                    problem = f"the caption of another picture: {said.body!r}"
            except (OSError, http.client.HTTPException) as error:
                problem = repr(error)
            self.answers += not problem
            self.problems.update([problem] if problem else [])

    def wait_for_answers(self, count: int) -> None:
        """Wait until so many more have come."""
        wanted = self.answers + count
        wait_for(lambda: self.answers >= wanted or self.problems, 180, f"{count} answers")


@contextmanager
def load(address: str, pictures: Mapping[bytes, str], clients: int) -> Iterator[Load]:
    """Have clients ask until the block ends; all have their answers then."""
    found = Load(address, pictures)
    threads = [threading.Thread(target=found.client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        found._stopped.set()
        for thread in threads:
            thread.join()


def draw_pictures(count: int) -> dict[bytes, str]:
    """Different pictures, and what the demo model says of them where it is right."""
    drawn = [draw_picture(random.Random(seed)) for seed in range(count)]
    return {encode_picture(each.image, "JPEG"): true_answer("<CAPTION>", each) for each in drawn}
