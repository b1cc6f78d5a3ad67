"""docs/reliability.md: every row has tests that exist, every long run has its row, and the page says what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.findings import Finding, load_findings
from benchmarks.faults.page import PAGE, render
from benchmarks.faults.rows import FOLDERS, ROWS, Row
from benchmarks.soak import PARTS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
def test_tests_of_each_row_exist(row: Row) -> None:
    assert row.tests
    for test in row.tests:
        assert (ROOT / test.partition("::")[0]).exists(), test


def test_every_failure_of_folders_and_every_long_run_has_its_row() -> None:
    assert [row.number for row in FOLDERS] == [str(number) for number in range(1, 19)]
    assert len({row.number for row in ROWS}) == len(ROWS)
    assert {part for row in ROWS for part in row.long} == set(PARTS)


def test_page_says_what_was_found() -> None:
    assert PAGE.read_text(encoding="utf-8") == "\n".join(render(load_findings())) + "\n"


def test_what_failed_or_was_skipped_is_said_on_the_page() -> None:
    row = ROWS[0]
    found = {
        f"{row.tests[0]}::test_one": Finding("held", "10 of 10", "2026-01-01", "a machine"),
        f"{row.tests[0]}::test_two": Finding("failed", "", "2026-01-01", "a machine"),
        f"{row.tests[0]}::test_three": Finding("skipped", "no strace", "2026-01-01", "a machine"),
        row.long[0]: Finding("failed", "9 of 10", "2026-01-02", "a machine"),
    }
    text = "\n".join(render(found))
    assert "**9 of 10** (this did not hold) · 10 of 10 · test_two failed · 1 of 3 tests hold" in text
    assert f"- {row.number}: `test_three` was skipped: no strace" in text
    assert "- a machine: 2026-01-01, 2026-01-02" in text
