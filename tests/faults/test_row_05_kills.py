"""Work lost on kill: SIGKILL at random moments, and just before the system calls that make a sidecar durable."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.kills import Kills, kill_at_calls, kill_by_chance, why_no_strace
from tests.conftest import Figure


def assert_nothing_is_lost(found: Kills) -> None:
    assert (found.lost, found.torn, found.left_over) == (0, 0, 0)
    assert found.twice <= found.in_flight


def test_after_random_kills_every_picture_is_captioned_and_no_sidecar_was_ever_torn(
    tmp_path: Path, figure: Figure
) -> None:
    found = kill_by_chance(tmp_path, pictures=60, kills=8, seed=1)
    assert found.kills == 8
    assert_nothing_is_lost(found)
    figure(f"{found.kills} random SIGKILLs over {found.pictures} pictures: lost 0, torn 0, twice {found.twice}")


def test_after_a_kill_at_each_step_of_writing_a_sidecar_nothing_is_lost_or_torn(tmp_path: Path, figure: Figure) -> None:
    if reason := why_no_strace():
        pytest.skip(reason)
    calls = [
        ("link,linkat", 1),
        ("unlink,unlinkat", 1),
        ("fsync,fdatasync", 1),
        ("fsync,fdatasync", 3),
        ("fsync,fdatasync", 6),
    ]
    found, never = kill_at_calls(tmp_path, pictures=4, calls=calls)
    assert never == []
    assert_nothing_is_lost(found)
    figure(f"{len(calls)} SIGKILLs just before link, unlink and fsync: lost 0, torn 0, no temporary file left")
