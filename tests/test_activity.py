"""What is counted by the minute, for the page's plot."""

from __future__ import annotations

from florence_daemon.activity import MINUTES, Activity


class Clock:
    now_s = 10_000_000.0

    def __call__(self) -> float:
        return self.now_s


def test_the_last_count_is_the_minute_under_way() -> None:
    clock = Clock()
    activity = Activity(clock)
    activity.note()
    clock.now_s += 60
    activity.note()
    activity.note()
    assert activity.per_minute() == [0] * (MINUTES - 2) + [1, 2]
    clock.now_s += 60
    assert activity.per_minute() == [0] * (MINUTES - 3) + [1, 2, 0]


def test_an_hour_is_kept_however_long_it_runs() -> None:
    clock = Clock()
    activity = Activity(clock)
    for _ in range(10 * MINUTES):
        clock.now_s += 60
        activity.note()
    assert activity.per_minute() == [1] * MINUTES
    assert len(activity._counts) == MINUTES
    clock.now_s += 3600
    assert activity.per_minute() == [0] * MINUTES
