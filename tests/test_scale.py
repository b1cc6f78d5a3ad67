"""docs/scale.md: it says what scale.json and benchmarks.md hold, every row runs, and one that fails says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scale
from benchmarks.scaling.cluster import busiest, pays_from
from benchmarks.scaling.costs import measured_models
from benchmarks.scaling.findings import Found, find, keep, load
from benchmarks.scaling.page import PAGE, SECTIONS, render
from benchmarks.scaling.sections import bounds, ceiling, faults, ray

FOUND = Found("2026-01-02", "a machine", 1.0)


def test_page_says_what_was_found() -> None:
    assert PAGE.read_text(encoding="utf-8") == "\n".join(render(load())) + "\n"


def test_every_row_has_its_section() -> None:
    assert set(scale.ROWS) == set(SECTIONS)


def test_rows_of_this_page_are_measured_and_no_others_are_kept() -> None:
    assert set(load()) <= set(scale.ROWS)


@pytest.mark.parametrize("name", ["engines", "ceiling", "decoding", "servers", "ray", "estimate"])
def test_row_runs_from_end_to_end_and_its_section_says_what_it_found(name: str, tmp_path: Path) -> None:
    """Of few pictures; how long they took is not looked at."""
    pytest.importorskip("skimage")
    figures = scale.ROWS[name].run(tmp_path, quick=True)
    text = "\n".join(SECTIONS[name][1](figures))
    assert len(text.splitlines()) >= 2
    assert "{" not in text
    keep({name: replace(FOUND, figures=figures)}, tmp_path / "scale.json")
    assert load(tmp_path / "scale.json")[name].figures == figures


def test_row_that_fails_says_so_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directory: Path, *, quick: bool) -> dict[str, Any]:
        raise RuntimeError("the disk\nis full")

    def go_on(directory: Path, *, quick: bool) -> dict[str, Any]:
        return {"at_once": {"disk": {"pictures": 30, "per_s": 600.0, "cpu_ms": 1.6}}}

    monkeypatch.setattr(scale, "ROWS", {"decoding": scale.Row("", 1, fail), "ceiling": scale.Row("", 1, go_on)})
    found = scale.measure(["decoding", "ceiling"], quick=True)
    assert found["decoding"].error == "RuntimeError: the disk\nis full"
    text = "\n".join(render(found))
    assert "**Could not be measured** on" in text
    assert "RuntimeError: the disk. `python -m benchmarks.scale --write --only decoding` tries again" in text
    assert "| disk | 30 | 600 | 1.60 ms | 96 % |" in text
    assert "Not measured yet: `python -m benchmarks.scale --write --only engines` does so." in text


def test_row_that_ends_the_program_is_one_that_fails() -> None:
    def leave() -> dict[str, Any]:
        raise SystemExit("The photographs are scikit-image's")

    assert find(leave).error == "SystemExit: The photographs are scikit-image's"


def test_million_pictures_cost_what_the_benchmarks_say() -> None:
    models = {model.title: model for model in measured_models()}
    assert len(models) == 6
    base = models["Base, OpenVINO, int8"]
    assert base.hours == pytest.approx(1e6 / base.per_s / 3600)
    assert base.hours < models["Base, OpenVINO, float32"].hours < models["Large, OpenVINO, float32"].hours


def test_bounds_are_those_of_decoding_network_and_bookkeeping() -> None:
    found: dict[str, Any] = {
        "decoding": {"careful_per_s": 10.0, "fast_per_s": 20.0, "file_bytes": 5_000_000},
        "ceiling": {"at_once": {"disk": {"per_s": 500.0}}},
    }
    lines = bounds(measured_models(), found)
    assert "| decoding | 10.0 pictures/s a core; 20.0 with `fast_decode` | " in "\n".join(lines)
    assert "| 25 pictures/s at 1 Gbit/s, 5.00 MB each | *g* × 40 Mbit/s |" in "\n".join(lines)
    assert "| one backfill | 500 pictures/s | *g* ÷ 500 backfills, each over a part of the tree |" in lines
    found["servers"] = {"parcel_bytes": 500_000}
    assert any(
        "; 250 with `send: resized`, 0.50 MB each | *g* × 40 Mbit/s; × 4 Mbit/s resized" in line
        for line in bounds(measured_models(), found)
    )
    assert bounds(measured_models(), {}) == ["Not measured yet."]


def test_processor_time_that_no_system_tells_is_left_out() -> None:
    assert "| memory | 30 | 600 | – | – |" in ceiling(
        {"at_once": {"memory": {"pictures": 30, "per_s": 600.0, "cpu_ms": None}}}
    )


# Ten seconds once, and 1 ms a picture.
RAY = [{"pictures": 100, "plain_s": 1.0, "ray_s": 11.1}, {"pictures": 10_000, "plain_s": 20.0, "ray_s": 40.0}]


def test_ray_pays_once_what_machines_save_is_more_than_it_costs() -> None:
    # Of 20 pictures each of two machines has ten, which is as long as one takes for all, and one of 21 has eleven.
    assert pays_from(RAY, 1.002, machines=2, at_a_time=1) == 22
    assert pays_from(RAY, 0.002, machines=2, at_a_time=1) is None


def test_pictures_that_come_to_one_machine_together_are_not_shared() -> None:
    assert [busiest(count, 2, 32) for count in (1, 32, 33, 64, 65, 96, 97)] == [1, 32, 32, 32, 33, 64, 64]
    assert pays_from(RAY, 100.0, machines=2, at_a_time=32) == 33
    text = "\n".join(ray({"machines": 2, "runs": RAY}))
    assert "| 100 | 1.0 s | 11.1 s | 101.0 ms |" in text
    assert "| Base, OpenVINO, int8 | " in text


def test_what_was_lost_or_done_twice_too_often_stands_out() -> None:
    found = {
        "node": {"pictures": 200, "lost": 0, "twice": 3, "allowed": 16},
        "driver": {"pictures": 200, "lost": 2, "twice": 17, "allowed": 16},
        "worker": {"error": "AssertionError: needs ip (iproute2)"},
    }
    lines = faults({"faults": found})
    assert "| one of two Ray nodes | 200 | 0 | 3 | 16 |" in lines
    assert "| the command itself, on Ray; given again | 200 | **2** | **17** | 16 |" in lines
    assert any("could not be tried: AssertionError: needs ip (iproute2)" in line for line in lines)
