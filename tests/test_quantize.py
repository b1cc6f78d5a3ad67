"""The quantize command with a stand-in for the engine: what is chosen, asked, compared, kept and said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import attrs
import pytest

from florence_daemon import quantize_command
from florence_daemon.config import Config, ModelConfig, StateConfig
from florence_daemon.engine.agreement import MIN_PICTURES
from florence_daemon.engine.proof import FILE_NAME, is_proof
from florence_daemon.engine.protocol import Answer, Ask, EngineSettings, Stages
from florence_daemon.errors import EngineError, PictureError, PromptError, UsageError
from florence_daemon.quantize import MOST_CALIBRATION, AnswerFile, Answers, Listener, choose_pictures, spread
from florence_daemon.quantize_command import Wish, run_quantize

Say = Callable[[str, Ask], str | dict[str, Any]]


def say_name(path: str, ask: Ask) -> str | dict[str, Any]:
    """A text, tags or a box of this picture's own."""
    number = int(Path(path).stem.strip("abcd"))
    if ask.prompt == "<OD>":
        return {"bboxes": [[0, 0, 10 + number, 10]], "labels": ["cat"]}
    return f"picture {number}, of a cat"


class FakeEngines:
    """int8 says what `say_int8` says, float32 the picture's name, in twice the time."""

    def __init__(self, directory: Path, say_int8: Say = say_name) -> None:
        self.directory = directory
        self.say_int8 = say_int8
        self.broken: set[str] = set()
        self.calibrated: list[str] = []
        self.asked: dict[str, list[str]] = {}
        self.loaded = 0

    def image_size(self, settings: EngineSettings) -> int:
        return settings.image_size or 768

    def int8_directory(self, settings: EngineSettings) -> Path:
        return self.directory / f"form-{self.image_size(settings)}"

    @contextmanager
    def open(self, settings: EngineSettings) -> Iterator[AnswerFile]:
        self.loaded += 1
        assert self.loaded == 1, "two models are in memory at once"
        form = f"{settings.precision} {self.image_size(settings)} {settings.engine} {settings.device}"
        asked = self.asked.setdefault(form, [])

        def answer(path: str, asks: Sequence[Ask]) -> Answers:
            if Path(path).name in self.broken:
                raise PictureError(f"{path} is damaged")
            asked.append(path)
            is_int8 = settings.precision == "int8"
            say = self.say_int8 if is_int8 else say_name
            stages = Stages(1.0, vision_s=1.0, text_s=1.0) if is_int8 else Stages(1.0, vision_s=3.0, text_s=2.0)
            return [Answer(ask.prompt, say(path, ask)) for ask in asks], stages

        yield answer
        self.loaded -= 1

    def calibrate(self, settings: EngineSettings, pictures: Sequence[str], listener: Listener) -> None:
        directory = self.int8_directory(settings)
        assert settings.precision == "int8"
        assert not is_proof(directory, self.image_size(settings)), "an old proof outlives its form"
        directory.mkdir(exist_ok=True)
        progress = listener.begin("calibrating", len(pictures))
        self.calibrated = [path for path in pictures if Path(path).name not in self.broken]
        progress.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four folders of twenty-five pictures."""
    for number in range(100):
        path = tmp_path / "pictures" / "abcd"[number // 25] / f"{'abcd'[number // 25]}{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "pictures"


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngines:
    monkeypatch.setattr(quantize_command, "find_spec", lambda name: name)  # also where OpenVINO is not installed
    return FakeEngines(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(model=ModelConfig(name="demo"), state=StateConfig(dir=tmp_path))


def wish(folder: Path, pictures: int = 100, **others: Any) -> Wish:
    return Wish(folder, pictures, ("CAPTION", "GENERATE_TAGS", "OD"), **others)


def test_one_half_of_the_pictures_calibrates_and_the_other_is_asked_about(
    folder: Path, config: Config, engines: FakeEngines
) -> None:
    assert run_quantize(wish(folder, 60), config, as_json=False, engines=engines) == 0
    float32, int8 = engines.asked["float32 768 auto cpu"], engines.asked["int8 768 openvino cpu"]
    assert float32 == int8
    assert (len(set(float32)), len(set(engines.calibrated))) == (30, 30)
    assert not set(float32) & set(engines.calibrated)
    for half in (float32, engines.calibrated):
        assert {Path(path).parent.name for path in half} == set("abcd")


def test_more_pictures_are_measured_with_than_calibration_can_use(tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / f"{number}.jpg").touch()
    calibration, measuring = choose_pictures(tmp_path, 400, halve=True)
    assert (len(calibration), len(measuring)) == (MOST_CALIBRATION, 400 - MOST_CALIBRATION)
    assert not set(calibration) & set(measuring)


def test_sample_is_spread_over_all_and_the_same_each_time() -> None:
    paths = [f"{number:04}" for number in range(1000)]
    sample = spread(paths, 100)
    assert sample == spread(paths, 100)
    assert [int(path) // 10 for path in sample] == list(range(100))
    assert sample != tuple(paths[::10])
    assert spread(paths[:3], 100) == tuple(paths[:3])


def test_answers_that_agree_prove_int8(
    folder: Path, config: Config, engines: FakeEngines, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_quantize(wish(folder), config, as_json=False, engines=engines) == 0
    assert is_proof(engines.directory / "form-768", 768)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "demo: int8 at 768 pixels beside float32 at 768 pixels, 50 pictures"
    assert printed[2:7] == [
        "prompt           same text  edit similarity  worst  tag overlap  box IoU",
        "<CAPTION>          100.0 %            1.000  1.000                      ",
        "<GENERATE_TAGS>    100.0 %            1.000  1.000        1.000         ",
        "<OD>               100.0 %                                         1.000",
        "all                100.0 %            1.000  1.000        1.000    1.000",
    ]
    assert printed[8].startswith("2.00 × as fast: 3.00 s, not 6.00 s, for a picture and its 3 prompts")
    assert "(seeing 3.00 ×, writing 2.00 ×)" in printed[8]
    assert printed[-1] == "Proved: precision auto takes int8 at 768 pixels from now on."


def say_worse(path: str, ask: Ask) -> str | dict[str, Any]:
    """A dot more, tags the other way round, boxes elsewhere; and quite another text for what is asked of b30 or b31."""
    if ask.prompt == "<OD>":
        return {"bboxes": [[500, 500, 510, 510]], "labels": ["cat"]}
    if ask.prompt == "<GENERATE_TAGS>":
        return ", ".join(reversed(str(say_name(path, ask)).split(", ")))
    return "a dog" if Path(path).stem in ("b30", "b31") else f"{say_name(path, ask)}."


def test_boxes_elsewhere_refuse_int8_and_the_reason_is_said(
    folder: Path, config: Config, engines: FakeEngines, capsys: pytest.CaptureFixture[str]
) -> None:
    engines.say_int8 = say_worse
    assert run_quantize(wish(folder), config, as_json=False, engines=engines) == 1
    assert not is_proof(engines.directory / "form-768", 768)
    printed = capsys.readouterr().out
    assert "<OD>: box IoU is 0.000, 0.85 is needed" in printed
    assert "Precision auto stays with float32." in printed
    assert "To take int8 at 768 pixels all the same, set model.precision: int8." in printed
    assert "edit similarity is" not in printed
    assert re.search(r"\n  float32 at 768 pixels: picture 3[01], of a cat\n  int8 at 768 pixels: a dog\n", printed)


def test_a_refusal_takes_an_older_proof_away(folder: Path, config: Config, engines: FakeEngines) -> None:
    run_quantize(wish(folder), config, as_json=False, engines=engines)
    engines.say_int8 = say_worse
    run_quantize(wish(folder), config, as_json=False, engines=engines)
    assert not is_proof(engines.directory / "form-768", 768)


def test_json_is_the_kept_report(
    folder: Path, config: Config, engines: FakeEngines, capsys: pytest.CaptureFixture[str]
) -> None:
    engines.say_int8 = say_worse
    run_quantize(wish(folder), config, as_json=True, engines=engines)
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((engines.directory / "form-768" / FILE_NAME).read_text())
    assert printed == {name: value for name, value in kept.items() if name != "circumstances"}
    assert printed["is_good"] is False
    assert [each["prompt"] for each in printed["agreements"]] == ["<CAPTION>", "<GENERATE_TAGS>", "<OD>"]
    assert printed["all"]["box_iou"] == 0.0


def test_unreadable_pictures_are_named_and_left_out(
    folder: Path, config: Config, engines: FakeEngines, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = choose_pictures(folder, 100, halve=True)[1][0]
    engines.broken = {Path(broken).name}
    assert run_quantize(wish(folder), config, as_json=True, engines=engines) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["agreements"][0]["answers"] == 49
    assert f"left out: {broken} is damaged" in printed.err


def test_too_few_readable_pictures_end_it_before_anything_is_made(
    folder: Path, config: Config, engines: FakeEngines
) -> None:
    engines.broken = {path.name for path in folder.rglob("*.jpg")} - {"a1.jpg", "a2.jpg"}
    with pytest.raises(EngineError, match=r"[012] of 50 pictures to measure with can be read, and 20 are needed"):
        run_quantize(wish(folder), config, as_json=False, engines=engines)
    assert not engines.calibrated


def test_a_smaller_picture_in_int8_is_compared_with_float32_of_the_usual_size(
    folder: Path, config: Config, engines: FakeEngines, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_quantize(wish(folder, image_size=576), config, as_json=False, engines=engines) == 0
    assert list(engines.asked) == ["float32 768 auto cpu", "int8 576 openvino cpu"]
    assert is_proof(engines.directory / "form-576", 576)
    assert "To take int8 at 576 pixels, set model.image_size: 576." in capsys.readouterr().out


def test_a_smaller_picture_alone_makes_nothing_and_keeps_nothing(
    folder: Path, config: Config, engines: FakeEngines, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = wish(folder, 30, precision="float32", image_size=576)
    assert run_quantize(trial, config, as_json=False, engines=engines) == 0
    assert [(form, len(paths)) for form, paths in engines.asked.items()] == [
        ("float32 768 auto auto", 30),
        ("float32 576 auto auto", 30),
    ]
    assert not list(engines.directory.glob("form-*"))
    printed = capsys.readouterr().out
    assert "Good enough.\nTo take float32 at 576 pixels, set model.image_size: 576.\n" in printed


def test_configured_size_is_the_usual_one_unless_another_is_to_be_compared(
    folder: Path, config: Config, engines: FakeEngines
) -> None:
    smaller = attrs.evolve(config, model=ModelConfig(name="demo", image_size=576))
    run_quantize(wish(folder), smaller, as_json=True, engines=engines)
    run_quantize(wish(folder, compare_size=768), smaller, as_json=True, engines=engines)
    assert list(engines.asked) == ["float32 576 auto cpu", "int8 576 openvino cpu", "float32 768 auto cpu"]


def test_settings_that_keep_int8_away_are_told(
    folder: Path, config: Config, engines: FakeEngines, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelConfig(name="demo", precision="float32", engine="torch", device="cuda")
    assert run_quantize(wish(folder), attrs.evolve(config, model=model), as_json=False, engines=engines) == 0
    wanted = "set model.precision: auto, model.engine: auto, model.device: cpu."
    assert wanted in capsys.readouterr().out


def test_what_needs_a_text_carries_it_behind_its_name(
    folder: Path, config: Config, engines: FakeEngines, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = replace(wish(folder), prompts=("od a cat",))
    run_quantize(trial, config, as_json=True, engines=engines)
    assert json.loads(capsys.readouterr().out)["agreements"][0]["prompt"] == "<OD> a cat"
    with pytest.raises(PromptError, match="needs a text"):
        run_quantize(replace(trial, prompts=("OPEN_VOCABULARY_DETECTION",)), config, as_json=True, engines=engines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": 39}, "--pictures 39 is too few: at least 40 are needed, one half to calibrate with"),
        ({"precision": "float32"}, "is the usual form itself: give a smaller --image-size, or int8"),
        ({"compare_size": 576}, "768 pixels would be compared with 576, and only a smaller picture is faster"),
        ({"folder": Path("nowhere")}, "nowhere is not a folder"),
    ],
)
def test_what_makes_no_sense_is_explained(
    folder: Path, config: Config, engines: FakeEngines, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_quantize(replace(wish(folder), **changes), config, as_json=False, engines=engines)
    assert not engines.asked


def test_a_folder_with_too_few_pictures_says_how_many_there_are_and_how_many_are_needed(tmp_path: Path) -> None:
    for number in range(MIN_PICTURES):
        (tmp_path / f"{number}.jpg").touch()
    with pytest.raises(UsageError, match=r"has 20 pictures, and at least 40 are needed"):
        choose_pictures(tmp_path, 100, halve=True)
    assert len(choose_pictures(tmp_path, 100, halve=False)[1]) == 20


def test_without_openvino_the_extra_is_named(
    folder: Path, config: Config, engines: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_command, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"florence-daemon\[quantize\]"):
        run_quantize(wish(folder), config, as_json=False, engines=engines)
    run_quantize(wish(folder, precision="float32", image_size=576), config, as_json=False, engines=engines)
