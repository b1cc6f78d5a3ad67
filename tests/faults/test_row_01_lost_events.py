"""Events lost without a word: the kernel's queue overflows while the daemon stands still."""

from __future__ import annotations

from pathlib import Path

from benchmarks.faults.burst import lose_events, queued_events
from tests.conftest import Figure


def test_pictures_of_which_no_event_told_are_captioned_long_before_the_next_rescan(
    tmp_path: Path, figure: Figure
) -> None:
    burst = lose_events(tmp_path, pictures=300, timeout_s=150)
    assert burst.captioned == 300
    assert burst.inferences == 300
    figure(
        f"{burst.captioned} of 300 pictures captioned {burst.converge_s:.0f} s after a freeze in which more than "
        f"{queued_events():,} events filled the kernel's queue; the next regular rescan was 300 s away"
    )
