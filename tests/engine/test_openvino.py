"""Our network as OpenVINO runs it gives the tokens that torch gives, alone and among others, and needs no torch."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from florence_daemon.engine.checkpoint import DEMO_DIRECTORY, open_checkpoint
from florence_daemon.engine.preprocess import read_picture, to_pixels
from florence_daemon.engine.protocol import Ask, EngineSettings
from florence_daemon.engine.work import search_settings
from florence_daemon.errors import EngineError
from florence_daemon.tasks import fed_text, find_task
from tests.engine.decoding import Asked, decode
from tests.pictures import DETAILED, jpeg
from tests.reference import IMAGES, TINY_A, needs_reference

pytest.importorskip("openvino", reason="pip install 'florence-daemon[openvino]'")

from florence_daemon.engine.openvino_backend import OpenVinoBackend
from florence_daemon.engine.openvino_form import PARTS, float32_directory, int8_directory

EXPECTED: dict[str, dict[str, Any]] = json.loads((TINY_A / "expected.json").read_text()) if TINY_A.is_dir() else {}
FEATURE_TOLERANCE = 1e-3
DEMO = open_checkpoint(DEMO_DIRECTORY)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def demo(state: Path) -> OpenVinoBackend:
    return OpenVinoBackend(DEMO, EngineSettings("demo", state_dir=str(state)), "float32")


def caption(backend: OpenVinoBackend) -> str:
    checkpoint, ask = DEMO, Ask("<MORE_DETAILED_CAPTION>")
    (features,) = backend.see(to_pixels(read_picture(jpeg()), checkpoint.layout.image_side_px)[None])
    settings = search_settings(checkpoint, EngineSettings("demo"), ask)
    prompt = checkpoint.encode_prompt(ask)[1]
    return checkpoint.tokenizer.decode(decode(backend.new_decoder(), [Asked(features, prompt, settings)])[0])


@needs_reference
def test_every_sequence_is_the_originals_alone_and_among_others(state: Path) -> None:
    checkpoint = open_checkpoint(TINY_A)
    backend = OpenVinoBackend(checkpoint, EngineSettings(str(TINY_A), state_dir=str(state)), "float32")
    asked, wanted = [], []
    for name, answers in EXPECTED.items():
        (features,) = backend.see(to_pixels(read_picture(str(IMAGES / name)), 768)[None])
        with np.load(TINY_A / "expected.npz") as expected:
            np.testing.assert_allclose(features[0], expected[f"{name}/features"], atol=FEATURE_TOLERANCE, rtol=0)
        for prompt, found in answers.items():
            ids = checkpoint.tokenizer.encode(fed_text(*find_task(prompt)))
            for search, beams in (("greedy", 1), ("beam3", 3)):
                ask = Ask("<CAPTION>", num_beams=beams, max_new_tokens=48)
                # One joins every seven steps: old columns are cut off while later ones are still at work.
                settings = search_settings(checkpoint, EngineSettings(str(TINY_A)), ask)
                asked.append(Asked(features, ids, settings, joins_at=7 * len(asked)))
                wanted.append(found[search]["ids"])
    assert len(wanted) == 32
    assert [decode(backend.new_decoder(), [each])[0] for each in (asked[0], asked[-1])] == [wanted[0], wanted[-1]]
    assert decode(backend.new_decoder(), asked) == wanted
    at_once = [Asked(each.features, each.prompt, each.settings) for each in asked]
    assert decode(backend.new_decoder(), at_once) == wanted


def test_the_demo_model_says_what_is_there(demo: OpenVinoBackend) -> None:
    assert (demo.device, demo.precision) == ("cpu", "float32")
    assert caption(demo) == DETAILED


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
def test_an_engine_beside_others_has_its_number_of_threads_and_binds_none(
    demo: OpenVinoBackend, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    backend = OpenVinoBackend(DEMO, EngineSettings("demo", state_dir=str(state)), "float32")
    for part in backend._parts.values():
        assert part.network.get_property("INFERENCE_NUM_THREADS") == 1
        assert part.network.get_property("ENABLE_CPU_PINNING") is False


def test_a_row_can_be_asked_for_all_its_logits(demo: OpenVinoBackend) -> None:
    (features,) = demo.see(to_pixels(read_picture(jpeg()), DEMO.layout.image_side_px)[None])
    decoder = demo.new_decoder()
    decoder.join(features, DEMO.encode_prompt(Ask("<CAPTION>"))[1], 2)

    offers = decoder.step([0, 1], [2, 2])

    logits = offers.all_logits([1])
    assert logits.shape == (1, DEMO.layout.text["vocab_size"])
    assert np.isneginf(logits[0, DEMO.layout.image_token_id])
    np.testing.assert_array_equal(logits[0, offers.ids[1]], offers.logits[1])
    assert offers.log_norm[1] == pytest.approx(np.log(np.exp(logits[0].astype(np.float64)).sum()), abs=1e-4)


def test_what_was_compiled_is_found_again_and_made_anew_when_it_is_broken(
    demo: OpenVinoBackend, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = float32_directory(state, DEMO)
    times = {part: (directory / f"{part}.blob").stat().st_mtime_ns for part in PARTS}

    OpenVinoBackend(DEMO, EngineSettings("demo", state_dir=str(state)), "float32")

    assert {part: (directory / f"{part}.blob").stat().st_mtime_ns for part in PARTS} == times
    assert not caplog.records
    (directory / "read.blob").write_bytes(b"not what it was")

    again = OpenVinoBackend(DEMO, EngineSettings("demo", state_dir=str(state)), "float32")

    assert "made anew" in caplog.text
    assert caption(again) == DETAILED


def test_int8_without_its_form_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="florence-daemon quantize --calibrate DIR"):
        OpenVinoBackend(DEMO, EngineSettings("demo", state_dir=str(tmp_path)), "int8")


def test_int8_form_answers_as_float32_does_and_another_picture_size_has_a_form_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="pip install 'florence-daemon[quantize]'")
    from florence_daemon.engine.openvino_export import calibrate

    steps: list[str] = []
    directory = int8_directory(tmp_path, DEMO)

    calibrate(DEMO, [to_pixels(read_picture(jpeg()), DEMO.layout.image_side_px)] * 3, directory, steps.append)

    backend = OpenVinoBackend(DEMO, EngineSettings("demo", state_dir=str(tmp_path)), "int8")
    assert caption(backend) == DETAILED
    notes = json.loads((directory / "form.json").read_text())["notes"]
    assert notes["vision"] == min(notes["vision_s"], key=notes["vision_s"].get), "the faster one is kept"
    assert any("calibrating the vision part with 3 pictures" in step for step in steps)
    assert int8_directory(tmp_path, open_checkpoint(DEMO_DIRECTORY, 96)) != directory


QUIET = """
import sys
import numpy as np
from pathlib import Path
from florence_daemon.engine.checkpoint import open_checkpoint
from florence_daemon.engine.openvino_backend import OpenVinoBackend
from florence_daemon.engine.protocol import EngineSettings

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit(f"tried to reach {arguments}")

sys.addaudithook(refuse)
checkpoint = open_checkpoint(Path(sys.argv[1]))
backend = OpenVinoBackend(checkpoint, EngineSettings("demo", state_dir=sys.argv[2]), "float32")
side = checkpoint.layout.image_side_px
backend.see(np.zeros((1, 3, side, side), np.float32))
print(sorted({"torch", "transformers", "nncf"} & set(sys.modules)), sys.modules["openvino_telemetry"])
"""


def test_a_process_that_finds_its_form_needs_no_torch_and_tells_nobody(demo: OpenVinoBackend, state: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", QUIET, str(DEMO_DIRECTORY), str(state)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "[] None\n"), ran.stderr


def test_without_a_state_directory_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    backend = OpenVinoBackend(DEMO, EngineSettings("demo"), "float32")

    assert caption(backend) == DETAILED
    assert len(list(tmp_path.iterdir())) == 1
    del backend
    gc.collect()
    assert not list(tmp_path.iterdir())
