"""Pictures of other sizes than the checkpoint's: the same network, fewer tokens, and refusals that say what fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from florence_daemon.engine.checkpoint import DEMO_DIRECTORY, longest_prompt, open_checkpoint
from florence_daemon.engine.layout import read_layout
from florence_daemon.engine.model import load_network
from florence_daemon.engine.preprocess import read_picture, to_pixels
from florence_daemon.engine.protocol import EngineSettings
from florence_daemon.engine.transformers_backend import TransformersBackend
from florence_daemon.errors import CheckpointError
from tests.engine.checkpoints import change_json, copy_tiny
from tests.reference import IMAGES, TINY_A, needs_reference


@needs_reference
@pytest.mark.parametrize(("side_px", "tokens"), [(384, 145), (480, 226), (576, 325)])
def test_every_size_gives_what_transformers_gives(side_px: int, tokens: int) -> None:
    """576 pixels end in 18 × 18 tokens, which windows of 12 do not divide, and 480 in 15 × 15."""
    checkpoint = open_checkpoint(TINY_A, side_px)
    pixels = torch.from_numpy(to_pixels(read_picture(str(IMAGES / "shapes.png")), side_px))[None]
    reference = TransformersBackend(checkpoint, "cpu", torch.float32, EngineSettings(str(TINY_A)))

    with torch.inference_mode():
        features = load_network(checkpoint, "cpu", torch.float32).see(pixels)

    assert (checkpoint.layout.image_side_px, checkpoint.layout.image_tokens) == (side_px, tokens)
    assert features.shape[1] == tokens
    np.testing.assert_allclose(features.numpy(), reference.encode_image(pixels).numpy(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("side_px", [0, -32, 16, 100, 385, 1024, 1600, 1632])
def test_a_size_that_the_network_cannot_read_is_refused_with_those_that_it_can(side_px: int) -> None:
    wanted = rf"model\.image_size is {side_px}; this model takes a multiple of 32 from 32 to 992 pixels.*Leave it out"

    with pytest.raises(CheckpointError, match=wanted):
        open_checkpoint(DEMO_DIRECTORY, side_px)


def test_the_largest_size_leaves_room_for_the_longest_prompt() -> None:
    checkpoint = open_checkpoint(DEMO_DIRECTORY, 992)

    assert checkpoint.layout.image_tokens == 31 * 31 + 1
    assert checkpoint.layout.max_positions - checkpoint.layout.image_tokens >= longest_prompt(checkpoint.tokenizer)


def test_a_size_of_none_and_the_own_size_change_nothing() -> None:
    own = read_layout(DEMO_DIRECTORY)

    assert open_checkpoint(DEMO_DIRECTORY).layout == own
    assert open_checkpoint(DEMO_DIRECTORY, own.image_side_px).layout == own


@needs_reference
def test_the_picture_position_table_ends_where_its_rows_do(tmp_path: Path) -> None:
    directory = copy_tiny(tmp_path, without=("model.safetensors",), side_px=96)
    change_json(directory / "config.json", lambda content: _shorten(content, 12))

    assert open_checkpoint(directory, 384).layout.image_tokens == 145
    with pytest.raises(CheckpointError, match=r"from 32 to 384 pixels: its position tables have 12 rows"):
        open_checkpoint(directory, 416)


def _shorten(content: dict[str, dict[str, dict[str, int]]], rows: int) -> None:
    content["vision_config"]["image_pos_embed"]["max_pos_embeddings"] = rows
