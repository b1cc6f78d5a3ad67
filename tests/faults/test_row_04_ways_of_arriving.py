"""Row 4: eight ways in which a picture can arrive, a hundred times each; "closed" fires for some of them only."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.pictures import jpeg
from benchmarks.faults.process import wait_for
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon

TIMES = 100


def _written(folder: Path, outside: Path, number: int) -> Path:
    path = folder / f"written-{number}.jpg"
    path.write_bytes(jpeg(number))
    return path


def _copied_with_its_old_date(folder: Path, outside: Path, number: int) -> Path:
    path = folder / f"copied-{number}.jpg"
    os.utime(outside / "picture.jpg", (631_152_000, 631_152_000))
    shutil.copy2(outside / "picture.jpg", path)
    return path


def _renamed_from_a_temporary_name(folder: Path, outside: Path, number: int) -> Path:
    path = folder / f"renamed-{number}.jpg"
    (folder / f"renamed-{number}.jpg.part").write_bytes(jpeg(number))
    os.rename(folder / f"renamed-{number}.jpg.part", path)
    return path


def _moved_in(folder: Path, outside: Path, number: int) -> Path:
    path = folder / f"moved-{number}.jpg"
    shutil.copy(outside / "picture.jpg", outside / f"{number}.jpg")
    os.rename(outside / f"{number}.jpg", path)
    return path


def _hard_linked(folder: Path, outside: Path, number: int) -> Path:
    path = folder / f"linked-{number}.jpg"
    os.link(outside / "picture.jpg", path)
    return path


def _with_its_new_directories(folder: Path, outside: Path, number: int) -> Path:
    path = folder / f"new-{number}" / "deep" / "picture.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(jpeg(number))
    return path


def _in_a_directory_that_was_moved_in(folder: Path, outside: Path, number: int) -> Path:
    (outside / f"album-{number}").mkdir()
    shutil.copy(outside / "picture.jpg", outside / f"album-{number}" / "picture.jpg")
    os.rename(outside / f"album-{number}", folder / f"album-{number}")
    return folder / f"album-{number}" / "picture.jpg"


def _later_into_a_directory_that_was_moved_in(folder: Path, outside: Path, number: int) -> Path:
    path = folder / f"empty-{number}" / "picture.jpg"
    if not path.parent.exists():
        (outside / f"empty-{number}").mkdir()
        os.rename(outside / f"empty-{number}", path.parent)
    return path


WAYS: list[Callable[[Path, Path, int], Path]] = [
    *(_written, _copied_with_its_old_date, _renamed_from_a_temporary_name, _moved_in, _hard_linked),
    *(_with_its_new_directories, _in_a_directory_that_was_moved_in, _later_into_a_directory_that_was_moved_in),
]


def test_every_way_of_arriving_is_captioned_every_time(
    start: StartDaemon, folder: Path, tmp_path: Path, figure: Figure
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "picture.jpg").write_bytes(jpeg(0))
    daemon = start(rescan_s=3600)
    wait_for(lambda: daemon.status()["folders"][0]["health"] == "ok", 60, "the folder to be watched")
    began_s = time.monotonic()
    arrived = {way: [way(folder, outside, number) for number in range(TIMES)] for way in WAYS}
    time.sleep(1.0)  # the moved-in directories have been there for a while when they get their pictures
    for path in arrived[_later_into_a_directory_that_was_moved_in]:
        shutil.copy(outside / "picture.jpg", path)

    def captioned() -> dict[str, int]:
        return {
            way.__name__.strip("_"): sum(path.with_suffix(".txt").exists() for path in paths)
            for way, paths in arrived.items()
        }

    try:
        wait_for(lambda: set(captioned().values()) == {TIMES}, 240, "every picture's caption", every_s=0.2)
    finally:
        counts = captioned()
    figure(f"{len(counts)} ways, {min(counts.values())}/{TIMES} each, in {time.monotonic() - began_s:.0f} s")
    assert counts == dict.fromkeys(counts, TIMES)
