"""Every engine says how many tokens an answer has, and whether it was cut off at the limit."""

from __future__ import annotations

import random

import pytest

from florence_daemon.demo_chance import draw_picture
from florence_daemon.demo_pictures import encode_picture
from florence_daemon.engine.backend import Backend, open_backend
from florence_daemon.engine.preprocess import Picture, read_picture
from florence_daemon.engine.protocol import Ask, EngineSettings


@pytest.fixture(scope="module", params=["torch", "transformers", "openvino"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    state_dir = str(tmp_path_factory.mktemp("state"))
    return open_backend(EngineSettings("demo", engine=request.param, precision="float32", state_dir=state_dir))


@pytest.fixture(scope="module")
def picture() -> Picture:
    return read_picture(encode_picture(draw_picture(random.Random("cut off"), (320, 240)).image))


@pytest.mark.parametrize("beams", [1, 3])
def test_answer_that_came_to_its_end_is_told_from_one_that_was_cut_off(
    backend: Backend, picture: Picture, beams: int
) -> None:
    asks = [Ask("<CAPTION>", num_beams=beams, max_new_tokens=limit) for limit in (None, 5)]
    (whole, cut), _ = backend.answer(picture, asks)
    assert not whole.is_cut
    assert 5 < whole.tokens < 100
    assert (cut.is_cut, cut.tokens) == (True, 5)
    assert str(whole.result).startswith(str(cut.result).strip())


def test_tokens_in_a_row_come_once_where_that_is_asked_for(backend: Backend, picture: Picture) -> None:
    asks = [Ask("<OD>", num_beams=1, max_new_tokens=40, no_repeat_ngram_size=size) for size in (None, 0, 1)]
    (usual, never, once), _ = backend.answer(picture, asks)
    assert usual == never, "the demo's own setting"
    assert once.result != usual.result
