"""A backfill as a process, timed from outside: when each picture ended, and what its own process computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.process import environment

# A backfill that takes so long hangs.
LONGEST_S = 600.0


@dataclass(frozen=True)
class Backfilled:
    """How a backfill went. whole_s: from its command to its end.

    per_s: pictures a second after the first third of them, when every engine has its model. cpu_ms: of its own process
    for each picture meanwhile, engines not counted; None where the system does not tell.
    """

    captioned: int
    failed: int
    whole_s: float
    per_s: float
    cpu_ms: float | None


class BackfillFailed(RuntimeError):
    """A backfill ended in another way than it should."""


def backfill(
    home: Path,
    paths: Sequence[Path | str],
    *,
    model: Mapping[str, Any] | None = None,
    stand_in: FakeSettings | None = None,
    arguments: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
) -> Backfilled:
    """Caption pictures with the command. model: settings of it. stand_in: of the engine that answers instead.

    What it keeps goes below `home`. Raises: BackfillFailed.
    """
    home.mkdir(parents=True, exist_ok=True)
    config = home / "config.yaml"
    config.write_text(json.dumps({"model": {"name": "demo", **(model or {})}}), encoding="utf-8")
    variables = dict(more or {}) | (stand_in.as_environment() if stand_in is not None else {})
    module = "florence_daemon" if stand_in is None else "benchmarks.faults.fake_engine"
    own = ["--config", str(config), "--json", "--prompt", "CAPTION", "--ext", "txt", *arguments]
    began_s = time.monotonic()
    command = [sys.executable, "-m", module, "backfill", *map(str, paths), *own]
    with (home / "log").open("ab") as log, open_process(command, log, environment(home, variables)) as process:
        patience = threading.Timer(LONGEST_S, process.kill)
        patience.start()
        try:
            moments = _watch(process)
            code = process.wait()
        finally:
            patience.cancel()
    whole_s = time.monotonic() - began_s
    failed = sum(each.failed for each in moments)
    if code not in (0, 1) or not moments or code != (1 if failed else 0):
        told = (home / "log").read_text(encoding="utf-8", errors="replace")[-1000:]
        raise BackfillFailed(f"exit code {code} after {len(moments)} pictures: {told}")
    first, last = moments[len(moments) // 3], moments[-1]
    counted = len(moments) - len(moments) // 3 - 1
    has_cpu = first.cpu_s is not None and last.cpu_s is not None
    return Backfilled(
        captioned=len(moments) - failed,
        failed=failed,
        whole_s=whole_s,
        per_s=counted / max(last.at_s - first.at_s, 1e-9),
        cpu_ms=1000 * (last.cpu_s - first.cpu_s) / max(counted, 1) if has_cpu else None,  # type: ignore[operator]
    )


def open_process(command: list[str], log: IO[bytes], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a command whose output is read here, and whose errors go to a file."""
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env=variables, text=True
    )


@dataclass(frozen=True)
class _Moment:
    """A picture has ended."""

    at_s: float
    failed: bool
    cpu_s: float | None


def _watch(process: subprocess.Popen[str]) -> list[_Moment]:
    moments = []
    for line in process.stdout or ():
        moments.append(_Moment(time.monotonic(), "error" in json.loads(line), _cpu_s(process.pid)))
    return moments


def _cpu_s(pid: int) -> float | None:
    """Seconds of processor time of one process, all its threads, without its children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forget_captions(tree: Path) -> None:
    """Remove what a backfill wrote, so that the next one has the same to do."""
    for sidecar in tree.rglob("*.txt"):
        sidecar.unlink()
