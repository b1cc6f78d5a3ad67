"""Measure the whole road with the demo model: start-up, idle memory, and what the daemon adds to settle and inference.

    python -m benchmarks.road [--runs 5]

Start-up is the time from starting the command to its first HTTP answer, beside that of a bare Python process on the
same machine. The overhead of the road is the time from the end of a copy to the visible sidecar, less the settle time
and less the engine's own seconds for that picture, which the daemon's log states.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from florence_daemon.demo_pictures import Shape, draw_shapes

SETTLE_S = 1.0
STAGES = re.compile(r"\(decode ([\d.]+), vision ([\d.]+), text ([\d.]+)\)")


class Daemon:
    """The real command over one folder."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "pictures"
        self.folder.mkdir(exist_ok=True)
        self.log = directory / "log"
        self.address = f"http://127.0.0.1:{free_port()}"
        config = directory / "config.yaml"
        config.write_text(
            f"model: {{name: demo, idle_unload_s: 5}}\nserver: {{port: {self.address.rpartition(':')[2]}}}\n"
            f"folders: [{{path: {json.dumps(str(self.folder))}, settle_s: {SETTLE_S}}}]\n"
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "florence_daemon", "run", "--config", str(config)], stderr=log
            )

    def answers(self) -> bool:
        """Whether it answers HTTP."""
        try:
            with urllib.request.urlopen(self.address + "/health/live", timeout=1):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def status(self) -> dict[str, dict[str, object]]:
        """`GET /status`."""
        with urllib.request.urlopen(self.address + "/status", timeout=10) as response:
            status: dict[str, dict[str, object]] = json.load(response)
            return status

    def stop(self) -> None:
        """Stop it in order."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], timeout_s: float = 120) -> float:
    """Wait for a condition, looking every millisecond; return when it came true on the performance counter."""
    deadline_s = time.perf_counter() + timeout_s
    while not condition():
        if time.perf_counter() > deadline_s:
            raise SystemExit(f"waited {timeout_s:g} s in vain")
        time.sleep(0.001)
    return time.perf_counter()


def measure_start(runs: int) -> tuple[float, float]:
    """Median seconds to the first answer, and of a bare Python that starts and ends."""
    ours, bare = [], []
    for _ in range(runs):
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare.append(time.perf_counter() - began_s)
        with tempfile.TemporaryDirectory() as directory:
            began_s = time.perf_counter()
            daemon = Daemon(Path(directory))
            ours.append(wait_until(daemon.answers) - began_s)
            daemon.stop()
    return statistics.median(ours), statistics.median(bare)


def measure_overhead(daemon: Daemon, picture: Path, runs: int) -> list[float]:
    """Milliseconds that the road adds, per copied picture, with the engine loaded."""
    added = []
    for number in range(runs + 1):
        sidecar = daemon.folder / f"{number}.tag"
        shutil.copy(picture, daemon.folder / f"{number}.jpg")
        copied_s = time.perf_counter()
        visible_s = wait_until(sidecar.exists)
        wait_until(lambda name=f"{number}.jpg: ": name in daemon.log.read_text())  # type: ignore[misc]
        line = next(line for line in daemon.log.read_text().splitlines() if f"{number}.jpg: " in line)
        stages = STAGES.search(line)
        if stages is None:
            raise SystemExit(f"no stages in the log: {line}")
        engine_s = sum(float(each) for each in stages.groups())
        added.append(1000 * (visible_s - copied_s - SETTLE_S - engine_s))
    return added[1:]  # the first one waited for the model


def resident_mb(pid: int) -> float:
    """Resident memory (VmRSS)."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=5, help="repetitions; medians are printed")
    runs = parser.parse_args().runs
    start_s, bare_s = measure_start(runs)
    print(f"start to first HTTP answer: {start_s:.2f} s ({start_s / bare_s:.0f} × a bare python, {bare_s:.3f} s)")
    with tempfile.TemporaryDirectory() as directory:
        picture = Path(directory) / "picture.jpg"
        draw_shapes((1024, 768), [Shape("red", "circle", (100, 200, 400, 500))]).image.save(picture)
        daemon = Daemon(Path(directory))
        wait_until(daemon.answers)
        print(f"resident memory before work: {resident_mb(daemon.process.pid):.0f} MB")
        added = measure_overhead(daemon, picture, runs)
        print(
            f"copy to sidecar beyond settle and engine: {statistics.median(added):.0f} ms (worst {max(added):.0f} ms)"
        )
        wait_until(lambda: daemon.status()["model"]["state"] == "unloaded")
        print(f"resident memory after work, model unloaded: {resident_mb(daemon.process.pid):.0f} MB")
        daemon.stop()


if __name__ == "__main__":
    main()
