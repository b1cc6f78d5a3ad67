"""A small tree of the benchmark for large ones: what must hold at any size."""

from __future__ import annotations

from pathlib import Path

from benchmarks.trees import measure
from florence_daemon.folders.root import WINDOW


def test_scan_of_a_new_tree_submits_every_picture_once_and_opens_none(tmp_path: Path) -> None:
    files = 2 * WINDOW + 10
    first, rescan = measure(files, 40, tmp_path / "tree", tmp_path / "state")
    assert (first.submitted, first.opened) == (files, 0)
    assert (rescan.submitted, rescan.opened) == (0, 0)
