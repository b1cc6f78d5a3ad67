"""Two Ray nodes, each in a network namespace of its own; one is killed in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.cluster import run_trial
from benchmarks.faults.ray_nodes import why_no_namespaces
from tests.conftest import Figure


@pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())
def test_node_that_is_killed_loses_nothing(tmp_path: Path, figure: Figure) -> None:
    trial = run_trial(tmp_path, "node", 60, batch=8)
    assert (trial.code, trial.runs, trial.killed) == (0, 1, 1)
    assert trial.lost == 0
    assert trial.twice <= trial.allowed
    figure(f"one of two nodes killed: {trial.pictures} pictures, {trial.lost} lost, {trial.twice} done twice")
