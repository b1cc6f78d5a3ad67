"""Temporary names of browsers, editors and copy programs are not captioned; the finished file is."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.faults.pictures import is_captioned_rightly, jpeg
from benchmarks.faults.process import wait_for
from tests.conftest import Figure
from tests.faults.conftest import StartDaemon

NAMES = (
    ".hidden.jpg",
    "a.jpg.part",
    "a.part.jpg",
    "a.jpg.crdownload",
    "Unconfirmed 12345.crdownload",
    "a.jpg.download",
    "a.jpg.tmp",
    "a.tmp.jpg",
    "a.jpg.filepart",
    "~a.jpg",
    "~$a.jpg",
    ".a.jpg.X3fQ9z",  # rsync
    ".syncthing.a.jpg.tmp",
    "~syncthing~a.jpg.tmp",
    ".a.jpg.swp",
    ".goutputstream-ABC123.jpg",
    "a.jpg~",
    "a.jpg.opdownload",
    "a.jpg.!ut",
    "a.jpg.partial",
)


def test_no_temporary_name_is_captioned_and_what_it_becomes_is(
    start: StartDaemon, folder: Path, figure: Figure
) -> None:
    (folder / "early").mkdir()
    for name in NAMES:
        (folder / "early" / name).write_bytes(jpeg(1))
    daemon = start(settle_s=0.1)
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(jpeg(number))
    (folder / "finished.jpg.part").write_bytes(jpeg(100))
    (folder / "finished.jpg.part").rename(folder / "finished.jpg")
    (folder / "early" / "whole.jpg").write_bytes(jpeg(101))
    for picture in (folder / "finished.jpg", folder / "early" / "whole.jpg"):
        wait_for(lambda picture=picture: is_captioned_rightly(picture), 60, f"{picture.name}'s caption")
    assert len(daemon.inferred("begun")) == 2
    assert daemon.failures() == {}
    # A sidecar has its name a moment before its hidden one is gone.
    expected = {*NAMES, "early", "finished.jpg", "finished.txt"}
    wait_for(lambda: set(os.listdir(folder)) == expected, 60, "nothing but these files")
    expected = {*NAMES, "whole.jpg", "whole.txt"}
    wait_for(lambda: set(os.listdir(folder / "early")) == expected, 60, "nothing but these files below")
    figure(f"{2 * len(NAMES)} files of {len(NAMES)} temporary names: 0 sidecars; the finished files: captioned")
