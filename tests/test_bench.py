"""The bench: what is tried, what is measured, what it advises; and the command on the demo model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from florence_daemon import config_file
from florence_daemon.bench import Bench, Facts, Plan, Row, Trial, choose, join, make_trials, offers, sum_up
from florence_daemon.bench_report import BenchReport, report_lines
from florence_daemon.engine.protocol import Answer, Ask, Done, EngineSettings, Stages
from florence_daemon.errors import CheckpointError, EngineError, PictureError
from tests.conftest import run_command
from tests.pictures import write_many

CPU = Facts("cpu", "openvino", "float32", 768, has_openvino=True, int8_proved=True)
PRESENT = EngineSettings("demo")
ASKS = (Ask("<CAPTION>"),)


class Machine:
    """A machine on which time passes with answers alone; some settings are faster, some say other words."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.opened: list[EngineSettings] = []
        self.refuses: dict[str, Exception] = {}
        self.skipped: list[str] = []
        self.advanced = self.total = 0

    @contextmanager
    def open(self, settings: EngineSettings) -> Iterator[Machine]:
        self.settings = settings
        self.opened.append(settings)
        if settings.engine == "torch":
            raise CheckpointError("torch is not for this machine")
        yield self

    def submit(self, picture: str | bytes, asks: tuple[Ask, ...]) -> Future[Done]:
        assert isinstance(picture, str)
        future: Future[Done] = Future()
        if picture in self.refuses:
            future.set_exception(self.refuses[picture])
            return future
        greedy = self.settings.num_beams == 1
        self.now_s += (
            (2.0 if greedy else 4.0)
            / (2 if self.settings.precision == "int8" else 1)
            / (1.5 if self.settings.max_batch == 16 else 1)
        )
        words = "a cat" if greedy else "a cat on a mat"
        future.set_result(Done(1, tuple(Answer(ask.prompt, words) for ask in asks), (1, 1), Stages()))
        return future

    def resident_mb(self) -> float:
        return 500.0

    def begin(self, what: str, total: int) -> Machine:
        self.total += total
        return self

    def skip(self, reason: str) -> None:
        self.skipped.append(reason)

    def advance(self, *, failed: bool) -> None:
        self.advanced += 1

    def close(self) -> None:
        pass


def run(machine: Machine, pictures: list[str], trials: list[Trial]) -> list[Row]:
    bench = Bench(pictures, ASKS, Plan(rounds=2, alone=1), machine.open, machine, lambda: machine.now_s)
    return bench.run(trials)


def titles(facts: Facts, present: EngineSettings = PRESENT) -> list[str]:
    return [trial.title for trial in make_trials(present, facts)]


def test_what_can_be_chosen_on_this_machine_is_tried() -> None:
    assert titles(CPU) == [
        "as configured",
        "engine: torch",
        "precision: int8",
        "num_beams: 1",
        "max_batch: 4",
        "max_batch: 16",
        "image_size: 576",
        "image_size: 384",
    ]


def test_int8_that_nobody_proved_is_not_tried() -> None:
    facts = Facts("cpu", "openvino", "float32", 768, has_openvino=True, int8_proved=False)
    assert "precision: int8" not in titles(facts)


def test_gpu_is_left_its_engine() -> None:
    gpu = Facts("cuda:0", "torch", "float16", 768, has_openvino=True, int8_proved=False)
    assert titles(gpu) == [
        "as configured", "num_beams: 1", "max_batch: 16", "max_batch: 64", "image_size: 576", "image_size: 384",
    ]  # fmt: skip


def test_settings_that_are_not_the_defaults_are_changed_the_other_way() -> None:
    torch = Facts("cpu", "torch", "float32", 384, has_openvino=True, int8_proved=True)
    present = EngineSettings("demo", engine="torch", num_beams=1, max_batch=4)
    assert titles(torch, present)[1:5] == [
        "engine: openvino",
        "precision: int8, engine: openvino",
        "num_beams: 3",
        "max_batch: 16",
    ]
    int8 = Facts("cpu", "openvino", "int8", 768, has_openvino=True, int8_proved=True)
    assert titles(int8, EngineSettings("demo", precision="int8"))[1:3] == [
        "engine: torch, precision: float32",
        "precision: float32",
    ]


def test_each_round_starts_every_engine_anew_and_begins_with_another() -> None:
    machine = Machine()
    trials = make_trials(PRESENT, CPU, ["num_beams"])
    rows = run(machine, ["a", "b", "c"], trials)
    assert [settings.num_beams for settings in machine.opened] == [3, 3, 1, 1, 3]  # the first one looks them over
    present, greedy = rows
    assert present.alone_s == [4.0, 4.0]
    assert present.per_hour == [900.0, 900.0]
    assert greedy.per_hour == [1800.0, 1800.0]
    assert machine.advanced == machine.total == 3 + 2 * 2 * (2 + 1 + 3)


def test_what_is_proved_and_faster_is_chosen_and_other_words_are_offered() -> None:
    machine = Machine()
    rows = run(machine, ["a", "b", "c"], make_trials(PRESENT, CPU))
    tried = sum_up(rows, ASKS)
    assert [(each.trial.title, round(each.ratio, 2)) for each in choose(tried)] == [
        ("precision: int8", 2.0),
        ("max_batch: 16", 1.5),
    ]
    assert [each.trial.title for each in offers(tried)] == ["num_beams: 1"]
    together = join(PRESENT, choose(tried))
    assert together.title == "precision: int8, max_batch: 16"
    assert (together.settings.precision, together.settings.max_batch) == ("int8", 16)
    agreement = tried[2].agreement
    assert agreement is not None
    assert (agreement.answers, agreement.same) == (3, 0.0)


def test_setting_that_cannot_be_tried_is_left_out_with_its_reason() -> None:
    machine = Machine()
    rows = run(machine, ["a"], make_trials(PRESENT, CPU, ["engine"]))
    assert rows[1].unable == "torch is not for this machine"
    assert machine.skipped == ["engine: torch: torch is not for this machine"]
    assert len(sum_up(rows, ASKS)) == 1


def test_settings_as_they_are_must_work() -> None:
    with pytest.raises(CheckpointError, match="torch is not for this machine"):
        run(Machine(), ["a"], [Trial((), EngineSettings("demo", engine="torch"), True)])


def test_picture_that_cannot_be_read_is_left_out_once() -> None:
    machine = Machine()
    machine.refuses = {"bad": PictureError("bad: is truncated")}
    rows = run(machine, ["a", "bad", "b"], make_trials(PRESENT, CPU, ["num_beams"]))
    assert set(rows[0].answers) == {"a", "b"}
    assert machine.skipped == ["bad: is truncated"]
    machine.refuses = {"a": PictureError("a: is empty")}
    with pytest.raises(EngineError, match="none of the pictures can be read"):
        run(machine, ["a"], make_trials(PRESENT, CPU, []))


def report(machine: Machine, facts: Facts, kinds: list[str]) -> BenchReport:
    tried = sum_up(run(machine, ["a", "b"], make_trials(PRESENT, facts, kinds)), ASKS)
    final = (choose(tried) or tried)[0]
    return BenchReport("demo", "openvino on cpu", ("<CAPTION>",), 2, 2, tuple(tried), (), final, False)


def yaml_of(lines: list[str]) -> list[dict[str, Any]]:
    """What a person could paste: each block from `model:` to the next blank line."""
    found, text = [], "\n".join(lines)
    for block in text.split("\n\n"):
        if block.startswith("model:"):
            found.append(yaml.safe_load(block))
    return found


def test_advice_can_be_pasted_and_says_pictures_an_hour(tmp_path: Path) -> None:
    lines = report_lines(report(Machine(), CPU, ["precision", "num_beams"]))
    said = "Set this, which says the same 2.00 times as fast: 1,800 pictures an hour, and 2.00 s for one alone."
    assert said in lines
    assert "  num_beams: 1  # 2.00 times as fast, 1,800 an hour; 0 % of the answers stay" in lines
    pasted = yaml_of(lines)
    assert pasted == [{"model": {"precision": "int8"}}, {"model": {"num_beams": 1}}]
    for number, block in enumerate(pasted):
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(block))
        config_file.load(tmp_path / f"{number}.yaml", {})


def test_machine_that_was_busy_is_told_of() -> None:
    machine = Machine()
    found = report(machine, CPU, ["precision"])
    assert "The rounds differ" not in "\n".join(report_lines(found))
    busy = replace(found, tried=(replace(found.tried[0], wavering=0.5), *found.tried[1:]))
    assert "The rounds differ by up to 50 %: repeat this while nothing else runs." in report_lines(busy)


def test_advice_leaves_the_settings_where_nothing_is_faster() -> None:
    lines = report_lines(report(Machine(), CPU, ["image_size"]))
    assert lines[-1] == (
        "Nothing that was tried says the same faster: leave the settings as they are. "
        "That is 900 pictures an hour, and 4.00 s for one alone."
    )


def test_bench_times_the_demo_model_on_pictures(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    write_many(tmp_path / "pictures", 2)
    (tmp_path / "pictures" / "bad.jpg").write_bytes(b"bad")
    result = run_command(
        "bench", "pictures", "--model", "demo", "--try", "num_beams", "--quick", "--json", "--prompt", "CAPTION",
        home=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["pictures"], found["rounds"], found["runs_on"]) == (2, 1, "torch float32 at 128 pixels on cpu")
    present, greedy = found["tried"]
    assert (present["changes"], greedy["changes"]) == ({}, {"num_beams": 1})
    assert present["pictures_per_hour"] > 0
    assert present["resident_mb"] > 100
    assert greedy["agreement"]["answers"] == 2
    assert found["choice"]["changes"] == {}
    assert "bad.jpg is not a picture that can be read" in result.stderr
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["000.jpg", "001.jpg", "bad.jpg"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no folder is configured: give pictures"),
        (["."], "there are no pictures in ."),
        (["nowhere"], "nowhere is no picture and no folder"),
    ],
)
def test_bench_without_pictures_says_so(tmp_path: Path, arguments: list[str], expected: str) -> None:
    result = run_command("bench", *arguments, "--model", "demo", home=tmp_path)
    assert (result.returncode, expected in result.stderr) == (2, True), result.stderr
