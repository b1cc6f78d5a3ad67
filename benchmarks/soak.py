"""The long forms of tests/faults: kills, bursts, crowds, idleness; and the page that says what was seen.

    python -m benchmarks.soak                       # everything; about an hour
    python -m benchmarks.soak --only kills burst    # some parts
    python -m benchmarks.soak --write               # and write docs/reliability.md with all that was found so far
    python -m benchmarks.soak --only --write        # write the page anew, measure nothing

What each part found is kept in docs/reliability.json with its date and machine, so parts can be run one by one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import mounts
from benchmarks.faults.burst import lose_events
from benchmarks.faults.clients import load_with_clients
from benchmarks.faults.cluster import count_other_captions, run_trial
from benchmarks.faults.findings import Finding, keep_findings, load_findings, run_tests
from benchmarks.faults.full_disk import fill_the_disk, forbid, make_read_only
from benchmarks.faults.idle import stay_idle
from benchmarks.faults.kills import kill_at_calls, kill_by_chance, why_no_strace
from benchmarks.faults.malformed import send_malformed
from benchmarks.faults.names import caption_names
from benchmarks.faults.page import write_page
from benchmarks.faults.ray_nodes import why_no_namespaces
from benchmarks.faults.rows import ROWS
from benchmarks.progress import say

SEED = 20261124
# The daemon is killed before the nth of these calls that a thread makes: they make sidecars and ledger durable.
CALLS = [
    (call, nth)
    for call in ("link,linkat", "unlink,unlinkat", "fsync,fdatasync", "pwrite64")
    for nth in (1, 2, 3, 5, 8, 13, 21)
]


@dataclass(frozen=True)
class Part:
    """A long run. minutes: about what it takes on two cores."""

    title: str
    minutes: float
    run: Callable[[Path], Finding]


def kills(directory: Path) -> Finding:
    """200 random kills over 500 pictures."""

    def tell(number: int) -> None:
        if number % 20 == 0:
            say(f"kills: {number} of 200")

    found = kill_by_chance(directory, pictures=500, kills=200, seed=SEED, say=tell)
    held = (found.lost, found.torn, found.left_over) == (0, 0, 0) and found.twice <= found.in_flight
    return _finding(
        held,
        f"{found.kills} random SIGKILLs over {found.pictures} pictures: lost {found.lost}, torn {found.torn}, "
        f"captioned twice {found.twice} (in flight at the kills: {found.in_flight}), "
        f"temporary files left {found.left_over}, set aside for a while {found.aside}",
    )


def calls(directory: Path) -> Finding:
    """A kill before each system call that makes something durable."""
    if reason := why_no_strace():
        return Finding.now("skipped", reason)
    found, never = kill_at_calls(directory, pictures=10, calls=CALLS)
    held = (found.lost, found.torn, found.left_over) == (0, 0, 0) and found.twice <= found.in_flight
    return _finding(
        held,
        f"killed just before the nth link, unlink, fsync or pwrite of a thread, {len(CALLS) - len(never)} "
        f"times: lost {found.lost}, torn {found.torn}, temporary files left {found.left_over}",
    )


def burst(directory: Path) -> Finding:
    """10,000 pictures of which no event tells."""
    found = lose_events(directory, pictures=10_000, timeout_s=900)
    return _finding(
        found.captioned == found.pictures and found.inferences == found.pictures,
        f"{found.captioned:,} of {found.pictures:,} pictures, written while the daemon stood still, captioned within "
        f"{found.converge_s:.0f} s; {found.inferences:,} inferences",
    )


def clients(directory: Path) -> Finding:
    """64 clients for 10 minutes."""
    found = load_with_clients(directory, 64, 600, lambda text: say(f"clients: {text}"))
    grown_mb = found.late_mb - found.early_mb
    grown = found.late_descriptors - found.early_descriptors
    errors = sum(found.errors.values())
    held = not errors and not found.wrong and grown_mb < 10 and grown < 20 and found.queue_left == 0
    return _finding(
        held,
        f"{found.clients} clients for {found.seconds / 60:.0f} minutes with `max_queued` 32: {found.answers:,} "
        f"answers, {found.wrong} wrong, {errors} errors, {found.asked_to_wait:,} times 503 with Retry-After; median "
        f"{found.p50_s:.2f} s, p99 {found.p99_s:.2f} s; memory {found.early_mb:.0f} → {found.late_mb:.0f} MB, "
        f"descriptors {found.early_descriptors:.0f} → {found.late_descriptors:.0f}",
    )


def requests(directory: Path) -> Finding:
    """10,000 requests that nobody should send."""
    sent = 0

    def tell(count: int) -> None:
        nonlocal sent
        sent += count
        say(f"requests: {sent:,} of 10,000")

    found = send_malformed(directory, 10_000, SEED, tell)
    errors = sum(found.proper.errors.values()) + found.proper.wrong
    failed = sum(count for status, count in found.statuses.items() if status >= 500)
    for each in found.unfair[:20]:
        say(each)
    return _finding(
        not found.unfair and not found.tracebacks and not errors,
        f"{found.requests:,} malformed requests: {failed} answers of 5xx, {len(found.unfair)} unfair, "
        f"{found.tracebacks} tracebacks; a client that asked properly meanwhile: {found.proper.answers:,} answers, "
        f"{errors} errors, p99 {found.proper.p99_s:.2f} s",
    )


def disk(directory: Path) -> Finding:
    """A full, a read-only and a forbidden folder for a minute each."""
    if reason := mounts.why_no_mounts() or mounts.why_no_modes():
        return Finding.now("skipped", reason)
    texts, held = [], True
    for name, fault in (("full", fill_the_disk), ("read-only", make_read_only), ("forbidden", forbid)):
        (directory / name).mkdir()
        found = fault(directory / name, 40, 60, 120)
        held = held and found.captioned == found.pictures and found.kept and found.said and found.cpu_share < 0.01
        texts.append(
            f"{name} for 60 s: {found.captioned} of {found.pictures} captioned {found.recovery_s:.1f} s after it was "
            f"well again, {100 * found.cpu_share:.2f} % of a core meanwhile"
        )
        say(f"disk: {texts[-1]}")
    return _finding(held, "; ".join(texts))


def names(directory: Path) -> Finding:
    """5,000 odd names."""
    found = caption_names(directory, 5000, SEED, 900)
    return _finding(
        not found.unheard and not found.tracebacks,
        f"{found.names:,} odd names: {found.captioned:,} captioned, {found.listed:,} listed, {len(found.unheard)} "
        f"neither, {found.tracebacks} tracebacks",
    )


def idle(directory: Path) -> Finding:
    """10 minutes without work over 1,000 pictures."""
    found = stay_idle(directory, pictures=1000, seconds=600)
    return _finding(
        found.jobs == 0,
        f"{found.seconds / 60:.0f} idle minutes over {found.pictures:,} pictures: {found.jobs} jobs, "
        f"{found.cpu_s:.2f} s of processor time ({100 * found.cpu_s / found.seconds:.2f} % of a core), "
        f"{found.resident_mb:.0f} MB",
    )


def trees(_: Path) -> Finding:
    """A million files in ten thousand folders, scanned twice, in a process of its own whose memory is measured."""
    command = [sys.executable, "-m", "benchmarks.trees", "--files", "1000000", "--folders", "10000"]
    said = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()
    if len(said) != 2:
        return _finding(False, f"benchmarks.trees ended early: {said}")
    pace = [float(line.partition(" s, ")[2].split()[0]) for line in said]
    resident_mb = [float(line.partition("at most ")[2].split()[0]) for line in said]
    held = max(pace) <= 10 and max(resident_mb) <= 300 and ", 0 opened" in said[1]
    load = f"; the machine's load was {os.getloadavg()[1]:.0f} on {os.cpu_count()} CPUs"
    return _finding(held, "1,000,000 files in 10,000 folders: " + "; ".join(said) + load)


def cluster(directory: Path) -> Finding:
    """Two Ray nodes; an engine, a worker, a node and the driver are killed, each in the middle of a run."""
    if reason := why_no_namespaces():
        return Finding.now("skipped", reason)
    texts, held = [], True
    for fault, apart in (*((each, False) for each in ("engine", "worker", "node", "driver")), ("node", True)):
        place = directory / f"{fault}{apart}"
        place.mkdir()
        found = run_trial(place, fault, 300, apart=apart)
        held = held and (found.code, found.lost, found.written_twice) == (0, 0, 0) and found.twice <= found.allowed
        texts.append(
            f"{fault} killed{' (results in Parquet)' if apart else ''}: lost {found.lost}, captioned twice "
            f"{found.twice} of at most {found.allowed}"
        )
        say(f"cluster: {texts[-1]}, {found.seconds:.0f} s")
    (directory / "captions").mkdir()
    others = count_other_captions(directory / "captions", 60)
    texts.append(f"60 pictures by the demo model with a node killed: {others} captions other than one machine's")
    return _finding(held and not others, "two Ray nodes, 300 pictures each time; " + "; ".join(texts))


PARTS = {
    "kills": Part("200 random kills over 500 pictures", 6, kills),
    "calls": Part("kills at chosen system calls", 2, calls),
    "burst": Part("10,000 pictures without an event", 4, burst),
    "names": Part("5,000 odd names", 2, names),
    "trees": Part("1,000,000 files", 8, trees),
    "disk": Part("full, read-only and forbidden folders", 4, disk),
    "clients": Part("64 clients for 10 minutes", 10, clients),
    "requests": Part("10,000 malformed requests", 4, requests),
    "idle": Part("10 idle minutes", 11, idle),
    "cluster": Part("kills on two Ray nodes", 7, cluster),
}
TESTS_MINUTES = 5.0


def main() -> int:
    """Run what was asked for; 1 when something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--only", nargs="*", choices=["tests", *PARTS], metavar="NAME", help=f"tests, {', '.join(PARTS)}"
    )
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    arguments = parser.parse_args()
    chosen = ["tests", *PARTS] if arguments.only is None else arguments.only
    failed = [name for name, found in _run(chosen).items() if found.outcome == "failed"]
    if arguments.write:
        write_page(load_findings())
    for name in failed:
        print(f"did not hold: {name}", file=sys.stderr)
    return 1 if failed else 0


def _run(chosen: list[str]) -> dict[str, Finding]:
    left = {name: TESTS_MINUTES if name == "tests" else PARTS[name].minutes for name in chosen}
    everything: dict[str, Finding] = {}
    for name in chosen:
        say(f"{name}; about {sum(left.values()):.0f} min left")
        began_s = time.monotonic()
        if name == "tests":
            wanted = tuple(sorted({test for row in ROWS for test in row.tests}))
            found = run_tests(sorted({test.partition("::")[0] for test in wanted}))
            found = {test: each for test, each in found.items() if test.startswith(wanted)}
        else:
            with tempfile.TemporaryDirectory(prefix="soak-") as directory:
                found = {name: PARTS[name].run(Path(directory))}
            say(f"{name}: {found[name].outcome}: {found[name].figure}")
        say(f"{name} took {(time.monotonic() - began_s) / 60:.1f} min")
        keep_findings(found)
        everything |= found
        del left[name]
    return everything


def _finding(held: bool, figure: str) -> Finding:
    return Finding.now("held" if held else "failed", figure)


if __name__ == "__main__":
    sys.exit(main())
