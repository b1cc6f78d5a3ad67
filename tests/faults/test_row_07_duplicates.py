"""Duplicates: many events about one picture are one inference, and what the daemon writes itself is no work."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.idle import stay_idle
from benchmarks.faults.pictures import is_captioned_rightly, jpeg
from benchmarks.faults.process import wait_for
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon


def test_twenty_touches_in_flight_are_one_inference(
    start: StartDaemon, tmp_path: Path, folder: Path, figure: Figure
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    daemon = start(FakeSettings(gate=str(gate)), settle_s=0.05)
    picture = folder / "a.jpg"
    picture.write_bytes(jpeg(1))
    wait_for(lambda: daemon.inferred("begun"), 60, "the engine to begin")
    for _ in range(20):
        os.utime(picture)
        time.sleep(0.02)
    gate.unlink()
    wait_for(lambda: is_captioned_rightly(picture), 60, "the caption")
    (folder / "later.jpg").write_bytes(jpeg(2))
    wait_for(lambda: is_captioned_rightly(folder / "later.jpg"), 60, "the caption of a later picture")
    of_a = [each for each in daemon.inferred("begun") if each.picture == str(picture)]
    assert len(of_a) == 1
    figure("20 touches in flight: 1 inference")


def test_rescans_and_own_sidecars_cause_no_work(tmp_path: Path, figure: Figure) -> None:
    idle = stay_idle(tmp_path, pictures=50, seconds=5, rescan_s=1)
    assert idle.jobs == 0
    assert idle.cpu_s < 0.1 * idle.seconds
    figure(f"{idle.seconds:.0f} idle seconds with a rescan each second: 0 jobs, {idle.cpu_s:.2f} s of processor time")
