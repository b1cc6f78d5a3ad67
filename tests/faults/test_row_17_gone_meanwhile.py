"""Pictures that are deleted or renamed while they settle, wait or are captioned leave no orphan behind."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.faults.fake_engine import FakeSettings
from benchmarks.faults.pictures import is_captioned_rightly, jpeg, write_jpegs
from benchmarks.faults.process import wait_for
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon


def orphans(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.txt") if not path.with_suffix(".jpg").exists()]


def test_deleted_and_renamed_pictures_leave_no_orphan_and_the_worker_goes_on(
    start: StartDaemon, tmp_path: Path, folder: Path, figure: Figure
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    daemon = start(FakeSettings(gate=str(gate)), settle_s=0.1)
    (folder / "sub").mkdir()
    at_work = write_jpegs(folder, range(40))
    in_sub = write_jpegs(folder / "sub", range(100, 110))
    wait_for(lambda: daemon.inferred("begun"), 60, "the engine to begin")
    wait_for(lambda: daemon.status()["queue"]["folder"] >= 40, 60, "the others to wait")
    settling = write_jpegs(folder, range(200, 210))
    deleted = at_work[0:10] + settling[0:4]
    renamed = at_work[10:20] + settling[4:8]
    for path in deleted:
        path.unlink()
    for path in renamed:
        path.rename(path.with_name(f"renamed-{path.name}"))
    shutil.rmtree(folder / "sub")
    gate.unlink()
    left = list(folder.glob("*.jpg"))
    assert len(left) == len(at_work) + len(settling) - len(deleted)
    wait_for(lambda: all(is_captioned_rightly(path) for path in left), 60, "every caption that is due")
    (folder / "last.jpg").write_bytes(jpeg(999))
    wait_for(lambda: is_captioned_rightly(folder / "last.jpg"), 60, "a later picture's caption")
    wait_for(lambda: not orphans(folder), 60, "no sidecar without its picture")
    wait_for(lambda: not daemon.failures(), 60, "the list of failures to be empty")
    assert not (folder / "sub").exists()
    gone = len(deleted) + len(in_sub)
    figure(f"{gone} deleted and {len(renamed)} renamed at every stage: 0 orphaned sidecars, {len(left) + 1} captioned")
