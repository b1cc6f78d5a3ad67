"""The engine's benchmark runs from end to end: everything is measured; how long it took is not looked at."""

from __future__ import annotations

import random
import xml.etree.ElementTree
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.aims import find_aims
from benchmarks.checkpoints import make_checkpoint
from benchmarks.contender import Memory
from benchmarks.engine import CPU, load_result, save_result
from benchmarks.floor import Rates, Work, count_work
from benchmarks.photographs import make_photographs
from benchmarks.report import write_chart, write_report
from benchmarks.results import Kind, Plan, Result, Row, SizeResult
from benchmarks.rounds import Pictures, measure_size
from florence_daemon.demo_chance import draw_picture
from florence_daemon.demo_pictures import encode_picture
from florence_daemon.engine.checkpoint import open_checkpoint, verify

PLAN = Plan(rounds=1, pictures=2, reference_pictures=1, alone=1, new_tokens=4, batch=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def measured(cache: Path) -> SizeResult:
    files = []
    for number in range(2):
        files.append(cache / f"{number}.jpg")
        files[-1].write_bytes(encode_picture(draw_picture(random.Random(number), (96, 96)).image, "JPEG"))
    kinds = {"a": CPU["a"], "b": CPU["b"], "z": Kind("nothing", "torch", "float7")}
    return measure_size("tiny", kinds, PLAN, Pictures(files[:1], files, files), cache)


def test_every_contender_is_measured_in_every_round(measured: SizeResult) -> None:
    for letter in ("a", "b"):
        row = measured.rows[letter]
        assert row.unable is None
        for seen in (row.ready_s, row.first_s, row.alone_s, row.both_s, row.per_s):
            assert len(seen) == PLAN.rounds
            assert min(seen) > 0
        assert row.short == 0
    assert len(measured.rates) == PLAN.rounds
    assert measured.faster_alone("a") == measured.faster_backfill("a") == 1


def test_ours_writes_the_tokens_of_transformers(measured: SizeResult) -> None:
    row = measured.rows["b"]
    assert (row.same, row.checked) == (4, 4)
    assert (row.backfilled_same, row.backfilled) == (1, 1)
    assert (row.grouped_same, row.grouped) == (1, 1)


def test_contender_that_cannot_load_is_left_out_with_its_reason(measured: SizeResult) -> None:
    assert "float7" in str(measured.rows["z"].unable)


def test_report_has_a_row_for_each_contender_and_the_chart_is_xml(measured: SizeResult) -> None:
    result = Result(PLAN, ["a machine"], {"torch": "2"}, [measured])
    report = write_report(result, "chart.svg")
    assert "| (a) transformers, float32 |" in report
    assert "| (b) ours, torch, float32 |" in report
    assert "(z) nothing, float7 could not take part: EngineError" in report
    assert "Transformers did 1 of the 2" in report
    assert xml.etree.ElementTree.fromstring(write_chart(result)).tag.endswith("svg")


def test_run_can_be_printed_again(measured: SizeResult, tmp_path: Path) -> None:
    result = Result(PLAN, ["a machine"], {"torch": "2"}, [measured])
    save_result(result, tmp_path / "run.json")
    assert load_result(tmp_path / "run.json") == result


def test_checkpoint_is_whole_and_made_once(cache: Path) -> None:
    directory = make_checkpoint("tiny", cache)
    verify(directory)
    written_ns = (directory / "model.safetensors").stat().st_mtime_ns
    assert make_checkpoint("tiny", cache) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == written_ns


def test_work_grows_with_the_batch_and_shrinks_with_int8(cache: Path) -> None:
    work = count_work(open_checkpoint(make_checkpoint("tiny", cache)).layout, 10, 64, 3)
    rates = Rates(100.0, 10.0)
    assert work.step_gb("int8", 1) < work.step_gb("float32", 1) < work.step_gb("float32", 8)
    assert work.batched_s("float32", rates, 8) < work.alone_s("float32", rates)


def test_aims_are_met_missed_or_not_measured() -> None:
    row = Row(CPU["d"], alone_s=[1.0], both_s=[1.2], per_s=[4.0], idle=Memory(1900.0, 900.0, 300.0))
    other = Row(CPU["a"], alone_s=[4.0], per_s=[1.0])
    found = SizeResult("base", Work(1.0, 1.0, 1.0, 1, 1, 1), [Rates(1.0, 1.0)], {"a": other, "d": row})
    verdicts = {aim.what: aim.verdict for aim in find_aims(Result(PLAN, [], {}, [found]))}
    assert verdicts["base, OpenVINO, int8: one picture alone beside (a)"] == "met"
    assert verdicts["base, OpenVINO, int8: backfill beside (a)"] == "**missed** by a factor of 1.25"
    assert verdicts["base, d: caption and tags beside a caption alone"] == "met"
    assert verdicts["base, d: peak memory of the process"] == "**missed** by a factor of 1.99"
    assert verdicts["large, d: peak memory of the process"] == "not measured"


def test_photographs_are_jpegs_of_one_size_and_differ(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    files = make_photographs(3, tmp_path, (64, 48))
    for file in files:
        with Image.open(file) as opened:
            assert (opened.format, opened.size) == ("JPEG", (64, 48))
    assert len({file.read_bytes() for file in files}) == 3
