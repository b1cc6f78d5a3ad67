"""What comes out is what the original implementation computed in float32: ids, features, encoder states, words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from florence_daemon.engine.backend import open_backend
from florence_daemon.engine.preprocess import Picture, read_picture, to_pixels
from florence_daemon.engine.protocol import Ask, EngineSettings
from florence_daemon.engine.transformers_backend import TransformersBackend
from florence_daemon.errors import EngineError, PromptError
from florence_daemon.tasks import fed_text, find_task
from tests.engine.checkpoints import change_json, change_tensors, copy_tiny
from tests.reference import IMAGES, TINY_A, needs_reference

pytestmark = needs_reference

EXPECTED: dict[str, dict[str, Any]] = json.loads((TINY_A / "expected.json").read_text()) if TINY_A.is_dir() else {}
FEATURE_TOLERANCE = 1e-3
FRAME = {0: "<s>", 1: "<pad>", 2: "</s>"}


@pytest.fixture(scope="module")
def tiny() -> TransformersBackend:
    backend = open_backend(EngineSettings(str(TINY_A), device="cpu", engine="transformers"))
    assert isinstance(backend, TransformersBackend)
    return backend


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> TransformersBackend:
    """tiny-a at 96 pixels and with 40 positions: 10 image tokens, and room for 30 more and for 40 words."""
    directory = copy_tiny(tmp_path_factory.mktemp("small"), side_px=96)
    change_json(directory / "config.json", lambda content: content["text_config"].update(max_position_embeddings=40))

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for side in ("encoder", "decoder"):
            name = f"language_model.model.{side}.embed_positions.weight"
            tensors[name] = tensors[name][:42].clone()

    change_tensors(directory, cut)
    backend = open_backend(EngineSettings(str(directory), device="cpu", engine="transformers"))
    assert isinstance(backend, TransformersBackend)
    return backend


def features_of(backend: TransformersBackend, picture: Picture, side_px: int = 768) -> torch.Tensor:
    return backend.encode_image(torch.from_numpy(to_pixels(picture, side_px)).unsqueeze(0))


@pytest.fixture(scope="module", params=list(EXPECTED) or ["none"])
def seen(request: pytest.FixtureRequest, tiny: TransformersBackend) -> Iterator[tuple[str, torch.Tensor]]:
    yield request.param, features_of(tiny, read_picture(str(IMAGES / request.param)))


def test_image_features_are_the_originals(seen: tuple[str, torch.Tensor]) -> None:
    name, features = seen
    with np.load(TINY_A / "expected.npz") as expected:
        np.testing.assert_allclose(features[0].numpy(), expected[f"{name}/features"], atol=FEATURE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("prompt", ["<CAPTION>", "<MORE_DETAILED_CAPTION>", "<GENERATE_TAGS>", "<OD>"])
def test_every_sequence_is_the_originals(
    seen: tuple[str, torch.Tensor], prompt: str, tiny: TransformersBackend
) -> None:
    name, features = seen
    wanted = EXPECTED[name][prompt]
    tokenizer = tiny.tokenizer

    prompt_ids = tokenizer.encode(fed_text(*find_task(prompt)))
    encoded = tiny.encode_prompt(features, prompt_ids)

    assert prompt_ids == wanted["prompt_ids"]
    with np.load(TINY_A / "expected.npz") as expected:
        mean = expected[f"{name}/{prompt}/encoder_mean"]
        np.testing.assert_allclose(encoded[0].mean(0).numpy(), mean, atol=FEATURE_TOLERANCE, rtol=0)
    for search, beams in (("greedy", 1), ("beam3", 3)):
        ids = tiny.generate(features, prompt_ids, beams, 48)
        assert ids == wanted[search]["ids"]
        assert "".join(FRAME.get(id_) or tokenizer.decode([id_]) for id_ in ids) == wanted[search]["text"]


def test_one_look_at_a_picture_serves_all_asks(tiny: TransformersBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    encode_image = tiny.encode_image
    monkeypatch.setattr(tiny, "encode_image", lambda pixels: looks.append(pixels) or encode_image(pixels))
    asks = [Ask("<CAPTION>", max_new_tokens=48), Ask("od", num_beams=1), Ask("<GENERATE_TAGS>", num_beams=1)]

    answers, stages = tiny.answer(read_picture(str(IMAGES / "checker.png")), asks)

    assert len(looks) == 1
    assert [answer.prompt for answer in answers] == ["<CAPTION>", "<OD>", "<GENERATE_TAGS>"]
    assert answers[0].result == EXPECTED["checker.png"]["<CAPTION>"]["beam3"]["text"][7:-4].strip()
    assert answers[1].result == {"bboxes": [], "labels": []}
    assert stages.vision_s > 0 < stages.text_s


def test_the_settings_beams_and_length_hold_where_an_ask_has_none(small: TransformersBackend) -> None:
    picture = read_picture(str(IMAGES / "gradient.png"))

    short = small.answer(picture, [Ask("<CAPTION>", max_new_tokens=3)])[0][0].result
    default, three, one = (small.answer(picture, [Ask("<CAPTION>", num_beams=n)])[0][0].result for n in (None, 3, 1))

    assert isinstance(default, str) and isinstance(short, str) and len(short) < len(default)
    assert default == three != one


@pytest.mark.parametrize("beams", [1, 3])
def test_a_long_answer_ends_before_the_position_table_does(small: TransformersBackend, beams: int) -> None:
    features = features_of(small, read_picture(str(IMAGES / "gradient.png")), 96)

    ids = small.generate(features, small.tokenizer.encode("What?"), beams, 10_000)

    assert len(ids) == 41  # the start token, and 40 that 40 positions can bring forth
    assert ids[-1] == 2


def test_a_text_longer_than_the_model_reads_is_refused_before_it_looks(small: TransformersBackend) -> None:
    with pytest.raises(
        PromptError, match=r"<CAPTION_TO_PHRASE_GROUNDING> is too long: 38 tokens, and the model reads 30"
    ):
        small.answer(read_picture(str(IMAGES / "shapes.png")), [Ask("<CAPTION_TO_PHRASE_GROUNDING>", " a" * 28)])


def test_the_image_token_is_never_generated(small: TransformersBackend) -> None:
    features = features_of(small, read_picture(str(IMAGES / "shapes.png")), 96)
    encoded = small.encode_prompt(features, small.tokenizer.encode("What?"))
    with torch.inference_mode():
        logits = small.model.lm_head(encoded)

    assert logits.shape[-1] == 51290
    assert torch.isneginf(logits[..., 51289]).all()
    assert torch.isfinite(logits[..., :51289]).all()


def test_an_unknown_prompt_is_refused_before_the_picture_is_looked_at(tiny: TransformersBackend) -> None:
    with pytest.raises(PromptError, match="Invalid prompt '<NOPE>'"):
        tiny.answer(read_picture(str(IMAGES / "shapes.png")), [Ask("<CAPTION>"), Ask("<NOPE>")])


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_answers_on_the_cpu_too(precision: str, tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, side_px=96)

    backend = open_backend(EngineSettings(str(directory), device="cpu", precision=precision))
    answers, _ = backend.answer(read_picture(str(IMAGES / "shapes.png")), [Ask("<CAPTION>", max_new_tokens=5)])

    assert backend.precision == precision
    assert answers[0].result


def test_auto_is_float32_on_the_cpu(tiny: TransformersBackend) -> None:
    assert (tiny.device, tiny.precision) == ("cpu", "float32")


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(EngineError, match="'cuda:99' is not available; there are: auto, cpu"):
        open_backend(EngineSettings(str(TINY_A), device="cuda:99"))
    with pytest.raises(EngineError, match="'int4' is not known; there are: auto, float32, float16, bfloat16"):
        open_backend(EngineSettings(str(TINY_A), precision="int4"))


QUIET = """
import sys
from florence_daemon.engine.backend import open_backend
from florence_daemon.engine.preprocess import read_picture
from florence_daemon.engine.protocol import Ask, EngineSettings
backend = open_backend(EngineSettings(sys.argv[1], device="cpu", engine="transformers"))
for beams in (1, 3):
    backend.answer(read_picture(sys.argv[2]), [Ask("<OD>", num_beams=beams, max_new_tokens=5)])
print([name for name in sys.modules if name.split(".")[0] in ("torchvision", "timm", "einops")])
"""


def test_nothing_is_said_and_torchvision_is_not_imported_even_where_it_is_installed(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path / "model", side_px=96)
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('built for another torch')")

    ran = subprocess.run(
        [sys.executable, "-c", QUIET, str(directory), str(IMAGES / "shapes.png")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[]\n", "")
