"""Odd names: each picture is captioned or listed with its reason, and nothing crashes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.faults.names import caption_names, make_names
from tests.conftest import Figure


def test_names_are_odd_in_every_way() -> None:
    names = make_names(500, seed=14)
    assert len(set(names)) == 500
    assert sum(len(name) == 255 for name in names) >= 100
    assert sum(b"\n" in name for name in names) >= 20
    assert sum(_is_not_utf8(name) for name in names) >= 50
    assert sum(b"\xcc\x81" in name for name in names) >= 20


def _is_not_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return True
    return False


def test_five_hundred_odd_names_are_captioned_or_listed(tmp_path: Path, figure: Figure) -> None:
    found = caption_names(tmp_path, 500, seed=14, timeout_s=240)
    assert found.unheard == ()
    assert found.tracebacks == 0
    assert found.listed > 0
    assert found.captioned > 300
    figure(
        f"{found.names} names: {found.captioned} captioned, {found.listed} listed (their sidecar would need more than "
        "255 bytes), 0 crashes"
    )
