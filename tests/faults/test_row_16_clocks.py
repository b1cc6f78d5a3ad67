"""Clocks: files from 1990 and 2099, and a system clock that jumps an hour forth and back."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import count_sidecars, is_captioned_rightly, jpeg, write_jpegs
from benchmarks.faults.process import DaemonProcess, wait_for, watching
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon

DATES = {"1990": 631152000, "2099": 4070908800, "1970": 0}
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def test_pictures_of_any_date_are_captioned(start: StartDaemon, folder: Path, figure: Figure) -> None:
    start(settle_s=0.1)
    pictures = []
    for number in range(30):
        for year, seconds in DATES.items():
            pictures.append(folder / f"{year}-{number}.jpg")
            pictures[-1].write_bytes(jpeg(len(pictures)))
            os.utime(pictures[-1], (seconds, seconds))
    wait_for(lambda: all(is_captioned_rightly(path) for path in pictures), 60, "every caption")
    figure(f"{len(pictures)} of {len(pictures)} from 1970, 1990 and 2099 captioned")


def test_copy_that_keeps_an_older_date_is_seen_as_a_change(start: StartDaemon, folder: Path, tmp_path: Path) -> None:
    """A cut-off picture is replaced by a whole one that is older: order in time means nothing."""
    daemon = start(settle_s=0.1)
    (folder / "a.jpg").write_bytes(jpeg(1)[:800])
    wait_for(lambda: daemon.inferred("failed"), 60, "the cut-off picture to be refused")
    (tmp_path / "older.jpg").write_bytes(jpeg(1))
    os.utime(tmp_path / "older.jpg", (DATES["1990"], DATES["1990"]))
    (tmp_path / "older.jpg").rename(folder / "a.jpg")
    wait_for(lambda: is_captioned_rightly(folder / "a.jpg"), 60, "the caption")


def test_clock_that_jumps_an_hour_forth_and_back_costs_no_picture(tmp_path: Path, folder: Path, figure: Figure) -> None:
    if not LIBRARIES:
        pytest.skip("libfaketime is not installed, so the daemon's clock cannot be set here")
    offset = tmp_path / "offset"
    set_clock(offset, "+0")
    variables = {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    config = watching(folder, settle_s=0.2, rescan_s=2)
    with DaemonProcess(tmp_path / "home", config, fake=FakeSettings(), more=variables) as daemon:
        pictures = []
        for jump in ("+1h", "-1h", "+0"):
            pictures += write_jpegs(folder, range(len(pictures), len(pictures) + 20))
            time.sleep(0.1)
            set_clock(offset, jump)
            pictures += write_jpegs(folder, range(len(pictures), len(pictures) + 20))
            due = len(pictures)
            wait_for(lambda due=due: count_sidecars(folder) == due, 60, f"every caption after {jump}")
        hours = set(re.findall(r"^[\d-]{10} (\d\d):", daemon.text(), re.MULTILINE))
        assert len(hours) >= 3, "the daemon's clock did not jump"
        assert all(is_captioned_rightly(path) for path in pictures)
        assert len(daemon.inferred()) == len(pictures), daemon.text()
    figure(f"{len(pictures)} of {len(pictures)} captioned, once each, over jumps of +1, -2 and +1 hours")


def set_clock(offset: Path, jump: str) -> None:
    """At once: the library reads the file at every look at the clock, and must not find it empty."""
    written = offset.with_suffix(".new")
    written.write_text(jump)
    written.rename(offset)
