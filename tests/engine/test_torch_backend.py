"""Our own engine gives what the original implementation computed, and what transformers' does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from florence_daemon.engine.backend import open_backend
from florence_daemon.engine.checkpoint import open_checkpoint
from florence_daemon.engine.preprocess import read_picture, to_pixels
from florence_daemon.engine.protocol import Ask, EngineSettings
from florence_daemon.engine.search import SearchSettings
from florence_daemon.engine.torch_backend import TorchBackend
from florence_daemon.engine.work import search_settings
from florence_daemon.tasks import fed_text, find_task
from tests.engine.checkpoints import change_json, change_tensors, copy_tiny
from tests.engine.decoding import Asked, decode
from tests.reference import IMAGES, TINY_A, needs_reference

pytestmark = needs_reference

EXPECTED: dict[str, dict[str, Any]] = json.loads((TINY_A / "expected.json").read_text()) if TINY_A.is_dir() else {}
FEATURE_TOLERANCE = 1e-3


def open_ours(directory: Path) -> TorchBackend:
    return TorchBackend(open_checkpoint(directory), "cpu", torch.float32)


def encode(text: str) -> list[int]:
    return open_checkpoint(TINY_A).tokenizer.encode(text)


@pytest.fixture(scope="module")
def tiny() -> TorchBackend:
    return open_ours(TINY_A)


def features_of(backend: TorchBackend, name: str, side_px: int = 768) -> torch.Tensor:
    (features,) = backend.see(to_pixels(read_picture(str(IMAGES / name)), side_px)[None])
    return features


def settings_for(directory: Path, **wanted: Any) -> SearchSettings:
    return search_settings(open_checkpoint(directory), EngineSettings(""), Ask("<CAPTION>", **wanted))


@pytest.mark.parametrize("name", EXPECTED)
def test_features_and_every_sequence_are_the_originals(name: str, tiny: TorchBackend) -> None:
    features = features_of(tiny, name)
    with np.load(TINY_A / "expected.npz") as expected:
        np.testing.assert_allclose(features.numpy(), expected[f"{name}/features"], atol=FEATURE_TOLERANCE, rtol=0)
    prompts = [encode(fed_text(*find_task(prompt))) for prompt in EXPECTED[name]]
    for search, beams in (("greedy", 1), ("beam3", 3)):
        settings = settings_for(TINY_A, num_beams=beams, max_new_tokens=48)
        wanted = [each[search]["ids"] for each in EXPECTED[name].values()]
        asked = [Asked(features, prompt, settings) for prompt in prompts]
        assert [decode(tiny.new_decoder(), [each])[0] for each in asked] == wanted
        assert decode(tiny.new_decoder(), asked) == wanted, "all prompts in step"


def test_steps_of_fixed_shapes_give_the_same_sequences() -> None:
    """What CUDA graphs need, on the CPU; the graphs themselves only record it."""
    backend = TorchBackend(open_checkpoint(TINY_A), "cpu", torch.float32, is_static=True)
    name = next(iter(EXPECTED))
    features = features_of(backend, name)
    asked, wanted = [], []
    for number, (prompt, answers) in enumerate(EXPECTED[name].items()):
        ids = encode(fed_text(*find_task(prompt)))
        for search, beams in (("greedy", 1), ("beam3", 3)):
            settings = settings_for(TINY_A, num_beams=beams, max_new_tokens=48)
            asked.append(Asked(features, ids, settings, joins_at=number * 11))
            wanted.append(answers[search]["ids"])
    assert decode(backend.new_decoder(), asked) == wanted


def test_asks_with_different_settings_are_answered_in_their_order() -> None:
    picture = read_picture(str(IMAGES / "checker.png"))
    asks = [Ask("<CAPTION>", max_new_tokens=48), Ask("od", num_beams=1), Ask("<GENERATE_TAGS>", max_new_tokens=48)]
    reference = open_backend(EngineSettings(str(TINY_A), device="cpu", engine="transformers"))
    ours = open_backend(EngineSettings(str(TINY_A), device="cpu", engine="torch"))
    assert ours.answer(picture, asks)[0] == reference.answer(picture, asks)[0]


@pytest.mark.parametrize("beams", [1, 3])
def test_long_answer_ends_before_the_position_table_does(beams: int, tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, side_px=96)
    change_json(directory / "config.json", lambda content: content["text_config"].update(max_position_embeddings=200))

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for side in ("encoder", "decoder"):
            name = f"language_model.model.{side}.embed_positions.weight"
            tensors[name] = tensors[name][:202].clone()

    change_tensors(directory, cut)
    ours = open_ours(directory)
    settings = settings_for(directory, num_beams=beams, max_new_tokens=4096)
    features = features_of(ours, "gradient.png", 96)
    (ids,) = decode(ours.new_decoder(), [Asked(features, encode("What?"), settings)])
    assert len(ids) == 201  # the start token, and 200 that 200 positions can bring forth
    assert ids[-1] == 2


def test_image_token_is_never_generated(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, side_px=96)

    def favour(tensors: dict[str, torch.Tensor]) -> None:
        tensors["language_model.model.shared.weight"][:] = -1.0  # any word is worse than the row of zeros

    change_tensors(directory, favour)
    ours = open_ours(directory)
    settings = settings_for(directory, max_new_tokens=6)
    features = features_of(ours, "shapes.png", 96)
    (ids,) = decode(ours.new_decoder(), [Asked(features, encode("What?"), settings)])
    assert 51289 not in ids


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_answers_on_the_cpu_too(precision: str, tmp_path: Path) -> None:
    backend = open_backend(
        EngineSettings(str(copy_tiny(tmp_path, side_px=96)), device="cpu", engine="torch", precision=precision)
    )
    answers, _ = backend.answer(read_picture(str(IMAGES / "shapes.png")), [Ask("<CAPTION>", max_new_tokens=5)])
    assert backend.precision == precision
    assert answers[0].result


def test_transformers_is_not_even_imported(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from florence_daemon.engine.backend import open_backend\n"
        "from florence_daemon.engine.protocol import EngineSettings\n"
        "open_backend(EngineSettings(sys.argv[1], device='cpu', engine='torch'))\n"
        "print([name for name in ('transformers', 'torchvision', 'timm') if name in sys.modules])\n"
    )
    arguments = [sys.executable, "-c", code, str(copy_tiny(tmp_path, side_px=96))]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
