"""A picture that the daemon itself died at, three times: set aside for a while, while all others go on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import is_captioned_rightly, write_jpegs
from benchmarks.faults.process import wait_for
from tests.faults.conftest import StartDaemon


def begun(home: Path) -> set[str]:
    """The names of the pictures that the ledger says the engine is at."""
    (path,) = home.rglob("ledger.sqlite3")
    connection = sqlite3.connect(path)
    try:
        return {name.decode() for (name,) in connection.execute("SELECT name FROM images WHERE has_begun")}
    finally:
        connection.close()


def test_picture_that_three_deaths_of_the_daemon_have_met_is_listed_and_the_rest_goes_on(
    start: StartDaemon, folder: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    (only,) = write_jpegs(folder, range(1))
    for _ in range(3):
        daemon = start(FakeSettings(gate=str(gate)), settle_s=0.05)
        wait_for(lambda: begun(tmp_path / "home") == {only.name}, 60, "the engine to be at the picture")
        assert daemon.failures() == {}
        daemon.kill()
    gate.unlink()
    daemon = start(settle_s=0.05, rescan_s=1)
    assert "the daemon ended 3 times while it worked on this picture" in daemon.failures()[str(only)]
    others = write_jpegs(folder, range(1, 4))
    wait_for(lambda: all(is_captioned_rightly(path) for path in others), 60, "the others")
    wait_for(lambda: is_captioned_rightly(only), 60, "its turn, 10 s later")
    wait_for(lambda: not daemon.failures(), 60, "the list of failures to be empty")
