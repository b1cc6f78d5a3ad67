"""What a person sees of a long run."""

from __future__ import annotations

from florence_daemon.reporting import LINE_S, LineProgress, Pace


def test_pace_states_count_rate_estimate_and_failures() -> None:
    pace = Pace(total=200, started_s=100.0, ended=40, failed=1)
    assert pace.say(120.0) == "40 of 200 images, 2.0 images/s, 0:01:20 left, 1 failed"
    assert Pace(10, 100.0, ended=2).say(130.0) == "2 of 10 images, 15.0 s per image, 0:02:00 left"
    assert Pace(10, 100.0).say(100.0) == "0 of 10 images"
    assert Pace(4, 100.0, ended=4).say(102.0) == "4 of 4 images, 2.0 images/s"


def test_lines_come_every_ten_seconds_and_once_at_the_end() -> None:
    now_s = 100.0
    lines: list[str] = []
    progress = LineProgress(4, lines.append, lambda: now_s)
    progress.advance(failed=False)
    now_s += LINE_S
    progress.advance(failed=True)
    progress.advance(failed=False)
    now_s += LINE_S
    progress.advance(failed=False)
    progress.close()
    assert lines == [
        "2 of 4 images, 5.0 s per image, 0:00:10 left, 1 failed",
        "4 of 4 images, 5.0 s per image, 1 failed",
    ]


def test_estimate_is_that_of_a_whole_batch() -> None:
    now_s = 100.0
    lines: list[str] = []
    progress = LineProgress(240, lines.append, lambda: now_s)
    now_s += LINE_S
    progress.advance(20, failed=False)
    assert lines == ["20 of 240 images, 2.0 images/s, 0:01:50 left"]
