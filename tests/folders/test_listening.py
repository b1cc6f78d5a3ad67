"""Events or polling: which it is, why, and the way back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from florence_daemon.config import FolderConfig
from florence_daemon.folders.health import OK, Health
from florence_daemon.folders.listening import BURST, CALM_S, LONGEST_BURST_S, RETRY_S, Listening
from florence_daemon.folders.mounts import Mount, Place
from tests.conftest import wait_for

LOCAL = Mount(1, "8:1", "/", "ext4")
SHARE = Mount(2, "0:40", "/", "nfs4")


class Limits:
    """What the machine says about its limits, as the test wants it."""

    def __init__(self) -> None:
        self.reached = ""

    def __call__(self, path: str) -> str:
        return self.reached


class Heard:
    """A listening folder whose limits the test sets."""

    def __init__(self, root: Path, poll: str = "auto") -> None:
        self.limits = Limits()
        self.folder = FolderConfig(path=root, poll=poll, poll_s=7.0, rescan_s=300.0)
        self.listening = Listening(self.folder, lambda: None, self.limits)

    def attend(self, own: Mount | None, *below: Mount) -> Listening:
        self.listening.attend(Place(1, 2, own, below), 100.0)
        return self.listening


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    found = Heard(tmp_path)
    yield found
    found.listening.stop()


def test_local_folder_is_told_of_changes(heard: Heard) -> None:
    listening = heard.attend(LOCAL)
    assert (listening.interval_s, listening.health) == (300.0, OK)
    assert listening.describe() == "told of changes, and scanned every 300 s"


def test_network_share_is_polled_and_well(heard: Heard) -> None:
    listening = heard.attend(SHARE)
    assert (listening.interval_s, listening.health) == (7.0, OK)
    assert listening.describe() == "scanned every 7 s (nfs4 does not tell of every change)"


def test_share_that_is_mounted_inside_a_local_folder_is_polled_too(heard: Heard) -> None:
    listening = heard.attend(LOCAL, SHARE)
    assert listening.interval_s == 7.0
    assert listening.describe().startswith("told of changes, and scanned every 7 s")


@pytest.mark.parametrize(("poll", "own", "interval_s"), [("always", LOCAL, 7.0), ("never", SHARE, 300.0)])
def test_setting_wins_over_the_file_system(tmp_path: Path, poll: str, own: Mount, interval_s: float) -> None:
    heard = Heard(tmp_path, poll)
    assert heard.attend(own).interval_s == interval_s
    assert heard.listening.describe().startswith("told of changes") == (poll == "never")
    heard.listening.stop()


def test_reached_limit_means_polling_until_it_is_raised(heard: Heard) -> None:
    listening = heard.attend(LOCAL)
    heard.limits.reached = "the limit is 5"
    assert not listening.check(110.0)
    assert listening.health == Health("degraded", "not all changes are told of: the limit is 5")
    assert listening.interval_s == 7.0
    assert not listening.check(120.0)
    heard.limits.reached = ""
    assert listening.check(130.0)
    assert (listening.interval_s, listening.health) == (300.0, OK)


def test_refused_events_are_tried_again_ever_more_rarely(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []
    now_s = 100.0

    def refuse(path: str, *, recursive: bool) -> None:
        tried.append(now_s)
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(heard.listening._events, "start", refuse)
    listening = heard.attend(LOCAL)
    assert listening.health == Health("degraded", "not all changes are told of: inotify watch limit reached")
    for now_s in [100.0 + step * RETRY_S for step in range(1, 100)]:
        listening.check(now_s)
    gaps = [later - earlier for earlier, later in pairwise(tried)]
    assert gaps == [10, 20, 40, 80, 160, 300, 300]


def test_folder_is_not_called_well_before_its_events_have_begun_again(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = heard.attend(LOCAL)
    heard.limits.reached = "the limit is 5"
    listening.check(110.0)
    heard.limits.reached = ""
    seen: list[str] = []
    start = listening._events.start

    def start_and_see(path: str, *, recursive: bool) -> None:
        seen.append(listening.health.state)
        start(path, recursive=recursive)

    monkeypatch.setattr(listening._events, "start", start_and_see)
    assert listening.check(130.0)
    assert (seen, listening.health) == (["degraded"], OK)


def test_burst_is_over_when_it_has_been_calm_for_a_while(heard: Heard, tmp_path: Path) -> None:
    listening = heard.attend(None)
    for number in range(BURST):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    count = 0

    def all_came() -> bool:
        nonlocal count
        count += listening.take(200.0).count
        return count >= BURST

    wait_for(all_came, 60, "the events")
    ends_s = listening.burst_ends_s()
    assert ends_s is not None
    assert ends_s == 200.0 + CALM_S
    (tmp_path / "late.jpg").write_bytes(b"x")
    wait_for(lambda: listening.take(250.0).count, 60, "the late event")
    assert listening.burst_ends_s() is not None
    listening.forget_burst()
    assert listening.burst_ends_s() is None


def test_endless_burst_is_cut_after_a_while(heard: Heard, tmp_path: Path) -> None:
    listening = heard.attend(None)
    listening._burst, listening._burst_since_s, listening._heard_s = BURST, 100.0, 159.5
    assert listening.burst_ends_s() == 100.0 + LONGEST_BURST_S


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_starting_anew_again_and_again_leaves_no_descriptor_open(heard: Heard) -> None:
    listening = heard.attend(None)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        listening.restart(100.0)
    # A thread that was told to end closes what it has a moment later.
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before, what="all others to be closed")
