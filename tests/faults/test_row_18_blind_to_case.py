"""File systems that ignore case and have no hard links: exFAT through FUSE. Nothing is overwritten."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.faults import mounts
from benchmarks.faults.pictures import is_captioned_rightly, jpeg, png
from benchmarks.faults.process import DaemonProcess, wait_for
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon


def test_on_exfat_no_file_of_a_person_is_overwritten(
    start: StartDaemon, tmp_path: Path, folder: Path, figure: Figure
) -> None:
    if reason := mounts.why_no_exfat():
        pytest.skip(reason)
    image = tmp_path / "exfat.img"
    with image.open("wb") as file:
        file.truncate(16 * 2**20)
    subprocess.run(["mkfs.exfat", str(image)], check=True, capture_output=True)
    daemon = start(prefix=tuple(mounts.exfat(image, folder)), settle_s=0.3, rescan_s=2)
    try:
        see_that_nothing_is_overwritten(daemon, folder)
    finally:
        daemon.freeze()
        mounts.unmount(daemon, folder)
    figure("exFAT through FUSE: of 15 pictures 12 captioned, 2 listed, 1 had its sidecar; 0 overwritten")


def see_that_nothing_is_overwritten(daemon: DaemonProcess, folder: Path) -> None:
    inside = mounts.seen_by(daemon, folder)
    (inside / "PERSON.TXT").write_text("what a person wrote")
    (inside / "person.jpg").write_bytes(jpeg(1))
    for name in ("pair.JPG", "Odd.JPG"):
        (inside / name).write_bytes(jpeg(len(name)))
    for name in ("pair.png", "odd.png"):
        (inside / name).write_bytes(png())
    for number in range(10, 20):
        (inside / f"{number}.Jpg").write_bytes(jpeg(number))
    assert (inside / "person.txt").exists(), "this file system minds case"
    alone = [inside / f"{number}.Jpg" for number in range(10, 20)]
    wait_for(lambda: all(is_captioned_rightly(path) for path in alone), 60, "ten captions")
    wait_for(lambda: len(daemon.failures()) == 2, 60, "one of each pair to be listed")
    assert (inside / "PERSON.TXT").read_text() == "what a person wrote"
    for pair in (("pair.JPG", "pair.png"), ("Odd.JPG", "odd.png")):
        count = wait_for(lambda pair=pair: sum(is_captioned_rightly(inside / name) for name in pair), 60, str(pair))
        assert count == 1
    hidden = "the hidden names of sidecars to be gone"
    wait_for(lambda: not [name for name in os.listdir(inside) if name.startswith(".florence")], 60, hidden)


def test_two_versions_within_one_tick_of_a_coarse_clock_are_told_apart(
    start: StartDaemon, folder: Path, figure: Figure
) -> None:
    """FAT counts two seconds as one: here both versions get the very same mtime."""
    daemon = start(settle_s=0.1)
    (folder / "a.jpg").write_bytes(jpeg(1)[:800])
    os.utime(folder / "a.jpg", (1_600_000_000, 1_600_000_000))
    wait_for(lambda: daemon.inferred("failed"), 60, "the cut-off picture to be refused")
    (folder / "a.jpg").write_bytes(jpeg(1))
    os.utime(folder / "a.jpg", (1_600_000_000, 1_600_000_000))
    wait_for(lambda: is_captioned_rightly(folder / "a.jpg"), 60, "the caption of the whole one")
    figure("two versions with the same mtime: the later one is captioned")
