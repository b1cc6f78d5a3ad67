"""What a person sees of a long run and of a status."""

from __future__ import annotations

from typing import Any

from florence_daemon.reporting import LINE_S, LineProgress, Pace, status_lines


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


def status(**model: Any) -> dict[str, Any]:
    idle = {"state": "unloaded", "device": None, "resident_mb": None, "unloads_in_s": None, "error": None}
    return {
        "uptime_s": 61,
        "model": {"name": "demo"} | idle | model,
        "queue": {"http": 0, "folder": 3, "backfill": 0, "running": 1, "settling": 2, "captioned": 5, "failed": 1},
        "folders": [{"path": "/p", "health": "ok", "reason": "", "watching": "told of changes"}],
        "failures": [
            {"path": "/p/a.jpg", "reason": "is truncated", "attempts": 3, "next_try_in_s": 4.2},
            {"path": "/p/b.jpg", "reason": "is not a picture", "attempts": 1, "next_try_in_s": None},
        ],
    }


def test_status_is_readable() -> None:
    assert status_lines(status()) == [
        "model    demo: unloaded",
        "queue    3 folder waiting, 1 running, 2 settling",
        "done     5 captioned, 1 failed, up 0:01:01",
        "folder   /p: ok, told of changes",
        "failed   /p/a.jpg: is truncated (3 tries, the next in 0:00:04)",
        "failed   /p/b.jpg: is not a picture",
    ]


def test_status_of_the_model_says_where_it_runs_and_when_it_goes() -> None:
    loaded = status(state="loaded", device="cuda:0", resident_mb=900, unloads_in_s=290.2)
    assert status_lines(loaded)[0] == "model    demo: loaded on cuda:0, 900 MB, unloads in 0:04:50"
    assert status_lines(status(state="loaded", device="cpu"))[0] == "model    demo: loaded on cpu"
    assert status_lines(status(state="failed", error="no such model"))[0] == "model    demo: failed: no such model"
    restarting = status(state="restarting", error="killed by signal 9")
    assert status_lines(restarting)[0] == "model    demo: restarting: killed by signal 9"
