"""Full disk, read-only and forbidden folders: the folder pauses, says so, and goes on when it is well again."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults import mounts
from benchmarks.faults.full_disk import Blocked, fill_the_disk, forbid, make_read_only
from tests.conftest import Figure

PICTURES = 20


def assert_it_went_on(found: Blocked, figure: Figure) -> None:
    assert found.said
    assert found.while_blocked < PICTURES
    assert found.captioned == PICTURES
    assert found.kept
    assert found.cpu_share < 0.05  # on a busy machine; benchmarks.soak measures it in peace
    figure(
        f"{found.captioned} of {PICTURES} captioned {found.recovery_s:.1f} s after it was well again; "
        f"{100 * found.cpu_share:.1f} % of a core while blocked"
    )


def test_full_disk_is_waited_for(tmp_path: Path, figure: Figure) -> None:
    if reason := mounts.why_no_mounts():
        pytest.skip(reason)
    assert_it_went_on(fill_the_disk(tmp_path, PICTURES, blocked_s=2, timeout_s=120), figure)


def test_read_only_file_system_is_waited_for(tmp_path: Path, figure: Figure) -> None:
    if reason := mounts.why_no_mounts():
        pytest.skip(reason)
    found = make_read_only(tmp_path, PICTURES, blocked_s=2, timeout_s=120)
    assert found.while_blocked == 0
    assert_it_went_on(found, figure)


def test_forbidden_folder_is_waited_for(tmp_path: Path, figure: Figure) -> None:
    if reason := mounts.why_no_modes():
        pytest.skip(reason)
    found = forbid(tmp_path, PICTURES, blocked_s=2, timeout_s=120)
    assert found.while_blocked == 0
    assert_it_went_on(found, figure)
