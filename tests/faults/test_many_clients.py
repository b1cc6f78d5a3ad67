"""Many clients at once: every answer is right, nobody gets an error, memory and descriptors stay as they are."""

from __future__ import annotations

from pathlib import Path

from benchmarks.faults.clients import load_with_clients
from tests.conftest import Figure


def test_sixty_four_clients_get_right_answers_or_are_asked_to_wait(tmp_path: Path, figure: Figure) -> None:
    found = load_with_clients(tmp_path, clients=64, seconds=6)
    assert found.errors == {}
    assert found.wrong == 0
    assert found.answers
    assert found.queue_left == 0
    assert found.late_mb - found.early_mb < 20
    assert found.late_descriptors <= found.early_descriptors + 10
    figure(f"64 clients for 6 s: {found.answers} answers, {found.asked_to_wait} times 503, 0 wrong, 0 errors")
