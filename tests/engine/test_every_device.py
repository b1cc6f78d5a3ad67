"""Every device of this machine gives the CPU's sequences: on a GPU, by CUDA graphs and streams of that GPU."""

from __future__ import annotations

import random

import pytest
import torch

from florence_daemon.demo_chance import draw_picture
from florence_daemon.demo_pictures import encode_picture
from florence_daemon.engine.checkpoint import DEMO, Checkpoint, find, open_checkpoint
from florence_daemon.engine.preprocess import read_picture, to_pixels
from florence_daemon.engine.protocol import Ask, EngineSettings
from florence_daemon.engine.torch_backend import TorchBackend
from florence_daemon.engine.work import search_settings
from tests.engine.decoding import Asked, decode

DEVICES = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
ASKS = [Ask("<CAPTION>"), Ask("<OD>", num_beams=1), Ask("<GENERATE_TAGS>"), Ask("<ANALYZE>")]


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return open_checkpoint(find(DEMO))


def sequences(backend: TorchBackend, demo: Checkpoint) -> list[list[int]]:
    """The answers about pictures whose questions come and go, in steps of several shapes."""
    asked = []
    decoder = backend.new_decoder()
    for number in range(4):
        picture = read_picture(encode_picture(draw_picture(random.Random(number), (320, 240)).image))
        (features,) = backend.see(to_pixels(picture, demo.layout.image_side_px)[None])
        for place, ask in enumerate(ASKS):
            settings = search_settings(demo, EngineSettings(DEMO), ask)
            asked.append(Asked(features, demo.encode_prompt(ask)[1], settings, joins_at=number * 9 + place))
    return decode(decoder, asked)


@pytest.mark.parametrize("device", DEVICES)
def test_steps_of_fixed_shapes_give_the_cpus_sequences(device: str, demo: Checkpoint) -> None:
    expected = sequences(TorchBackend(demo, "cpu", torch.float32, is_static=False), demo)
    assert sequences(TorchBackend(demo, device, torch.float32, is_static=True), demo) == expected
