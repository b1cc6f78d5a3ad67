"""A full-size base beside transformers' network: random weights, the real shapes, a real road from file to tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.checkpoints import make_checkpoint
from florence_daemon.engine.checkpoint import Checkpoint, open_checkpoint
from florence_daemon.engine.protocol import Ask, EngineSettings
from florence_daemon.engine.torch_backend import TorchBackend
from florence_daemon.engine.transformers_backend import TransformersBackend
from florence_daemon.engine.work import search_settings
from tests.engine.decoding import Asked, decode

# Of the largest feature.
TOLERANCE = 1e-3
TOKENS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    directory = make_checkpoint("base", tmp_path_factory.mktemp("full-size"))
    yield open_checkpoint(directory)
    (directory / "model.safetensors").unlink()  # half a gigabyte, which pytest would keep


def pixels() -> Any:
    """Noise of several grains: a picture that differs from place to place at every scale."""
    chance = np.random.default_rng(5)
    sizes = (3, 12, 96, 768)
    grains = [chance.normal(0, 1, (3, side, side)).repeat(768 // side, 1).repeat(768 // side, 2) for side in sizes]
    return np.stack([sum(grains) / 2]).astype(np.float32)


def test_base_gives_the_features_and_tokens_of_transformers(checkpoint: Checkpoint) -> None:
    ours = TorchBackend(checkpoint, "cpu", torch.float32)
    settings = EngineSettings("", max_new_tokens=TOKENS)
    theirs = TransformersBackend(checkpoint, "cpu", torch.float32, settings)
    picture = pixels()
    (features,) = ours.see(picture)
    expected = theirs.encode_image(torch.from_numpy(picture))
    assert (features - expected[0]).abs().max() < TOLERANCE * expected.abs().max()
    asks = [Ask("<CAPTION>"), Ask("<CAPTION_TO_PHRASE_GROUNDING>", "a red boat on a lake"), Ask("<OD>", num_beams=1)]
    prompts = [checkpoint.encode_prompt(ask)[1] for ask in asks]
    asked = [
        Asked(features, prompt, search_settings(checkpoint, settings, ask), joins_at=number)
        for number, (ask, prompt) in enumerate(zip(asks, prompts, strict=True))
    ]
    wanted = [
        theirs.generate(expected, prompt, ask.num_beams, ask.max_new_tokens)
        for ask, prompt in zip(asks, prompts, strict=True)
    ]
    found = decode(ours.new_decoder(), asked)
    assert found == wanted
    assert len({tuple(ids) for ids in found}) == len(asks), "the prompts make a difference"
