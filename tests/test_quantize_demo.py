"""The quantize command with the real engine: the embedded model, drawn pictures, float32 against int8."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from florence_daemon.demo_chance import draw_picture, encode_at_random
from florence_daemon.engine.backend import open_backend
from florence_daemon.engine.checkpoint import DEMO_DIRECTORY, open_checkpoint
from florence_daemon.engine.proof import is_proved
from florence_daemon.engine.protocol import EngineSettings
from tests.conftest import run_command

PICTURES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures, and a file that is none."""
    directory = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        chance = random.Random(f"quantize {number}")
        picture = draw_picture(chance, (320, 240))
        (directory / f"{number:02}.png").write_bytes(encode_at_random(chance, picture.image))
    (directory / "00-bad.png").write_bytes(b"nothing like a picture")
    return directory


def test_int8_of_the_demo_model_proves_itself_and_is_what_auto_takes(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="pip install 'florence-daemon[quantize]'")
    state = tmp_path / "state"
    # Torch is the usual form here: the reference, and OpenVINO's float32 form need not be compiled first.
    settings = f"model: {{name: demo, device: cpu, engine: torch, num_beams: 1}}\nstate: {{dir: {state}}}\n"
    (tmp_path / "c.yaml").write_text(settings)
    arguments = ("--calibrate", str(folder), "--config", "c.yaml", "--prompt", "CAPTION", "--prompt", "OD", "--json")
    result = run_command("quantize", *arguments, home=tmp_path, timeout_s=600)
    assert result.returncode == 0, result.stderr
    assert f"left out: {folder / '00-bad.png'} is not a picture" in result.stderr
    report = json.loads(result.stdout)
    caption, boxes = report["agreements"]
    assert report["is_good"]
    assert caption["edit_similarity"] >= 0.97
    assert boxes["box_iou"] >= 0.9
    assert (report["usual"]["precision"], report["other"]["precision"]) == ("float32", "int8")
    checkpoint = open_checkpoint(DEMO_DIRECTORY)
    assert is_proved(checkpoint, EngineSettings("demo", state_dir=str(state)))
    taken = open_backend(EngineSettings("demo", device="cpu", engine="openvino", state_dir=str(state)))
    assert taken.precision == "int8"
    assert not is_proved(checkpoint, EngineSettings("demo", state_dir=str(tmp_path / "another")))
    assert not is_proved(open_checkpoint(DEMO_DIRECTORY, 64), EngineSettings("demo", state_dir=str(state)))
    assert not is_proved(checkpoint, EngineSettings("demo"))


def test_a_picture_too_small_for_the_demo_model_is_refused_with_reasons(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {name: demo, device: cpu, engine: torch, num_beams: 1}\n")
    arguments = ("--calibrate", str(folder), "--config", "c.yaml", "--precision", "float32", "--image-size", "64")
    result = run_command("quantize", *arguments, "--pictures", "24", "--prompt", "OD", home=tmp_path, timeout_s=600)
    assert result.returncode == 1, result.stderr
    assert "demo: float32 at 64 pixels beside float32 at 128 pixels" in result.stdout
    assert "<OD>: box IoU is 0." in result.stdout
    assert "To take float32 at 64 pixels all the same, set model.image_size: 64." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("--calibrate", "nowhere", "--model", "demo"), 2, "nowhere is not a folder"),
        (("--calibrate", ".", "--model", "demo"), 2, "has 0 pictures, and at least 40 are needed"),
        (("--calibrate", ".", "--model", "demo", "--image-size", "100"), 2, "--image-size: 100 is not possible"),
        (("--calibrate", ".", "--model", "no/such"), 1, "offline, nothing is downloaded"),
        (("--calibrate", ".", "--model", "demo", "--prompt", "NOPE"), 1, "Invalid prompt"),
        ((), 2, "--calibrate"),
    ],
)
def test_wrong_use_is_explained(tmp_path: Path, arguments: tuple[str, ...], code: int, expected: str) -> None:
    result = run_command("quantize", *arguments, home=tmp_path)
    assert (result.returncode, expected in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr
