"""A picture's answers are the same alone and among others, at whatever step those join: the real networks, float32."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from florence_daemon.demo_answers import PROMPTS
from florence_daemon.demo_chance import draw_picture
from florence_daemon.demo_pictures import encode_picture
from florence_daemon.engine.backend import open_backend
from florence_daemon.engine.batching import Batching
from florence_daemon.engine.protocol import Answer, Ask, Done, EngineSettings, Failed, Progress, Request
from tests.engine.checkpoints import copy_tiny
from tests.reference import needs_reference

COUNT = 17


@pytest.fixture(
    scope="module",
    params=[("demo", "torch"), ("demo", "openvino"), pytest.param(("tiny-a", "torch"), marks=needs_reference)],
    ids=" ".join,
)
def loop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Batching:
    """The loop over a small network; tiny-a has random weights, so that every answer of it is a long one."""
    name, engine = request.param
    directory = tmp_path_factory.mktemp("company")
    model = copy_tiny(directory / "model", side_px=96) if name == "tiny-a" else "demo"
    if engine == "openvino":
        pytest.importorskip("openvino")
    settings = EngineSettings(
        str(model), device="cpu", engine=engine, precision="float32", max_new_tokens=40, max_batch=COUNT,
        state_dir=str(directory),
    )  # fmt: skip
    loop = open_backend(settings)
    assert isinstance(loop, Batching)
    assert loop.batch == COUNT
    return loop


@pytest.fixture(scope="module")
def questions() -> list[tuple[bytes, tuple[Ask, ...]]]:
    """Pictures and what is asked of each: one or several prompts, one beam to three, drawn or not."""
    chance = random.Random("company")
    found = []
    for number in range(COUNT):
        picture = encode_picture(draw_picture(chance, (160, 120)).image)
        prompts = chance.sample(sorted(PROMPTS), 1 + number % 2)
        settings = {"temperature": 1.0, "seed": number} if number % 4 == 3 else {"num_beams": 1 + number % 3}
        found.append((picture, tuple(Ask(prompt, **settings) for prompt in prompts)))  # type: ignore[arg-type]
    return found


def answer_together(loop: Batching, questions: list[tuple[bytes, tuple[Ask, ...]]]) -> list[tuple[Answer, ...]]:
    """The answers, when each picture comes as soon as the one before it is seen."""
    ends: dict[int, Done | Failed] = {}

    def note(reply: Progress) -> None:
        if isinstance(reply, Done | Failed):
            ends[reply.id] = reply

    for number, (picture, asks) in enumerate(questions):
        loop.put(Request(number, picture, asks), note)
    while len(ends) < len(questions):
        loop.run_once(None)
    failed = [end for end in ends.values() if isinstance(end, Failed)]
    assert not failed
    return [end.answers for _, end in sorted(ends.items()) if isinstance(end, Done)]


def test_answers_are_the_same_alone_and_among_sixteen_others(
    loop: Batching, questions: list[tuple[bytes, tuple[Ask, ...]]]
) -> None:
    alone = [answer_together(loop, [question])[0] for question in questions]
    assert answer_together(loop, questions) == alone
    assert answer_together(loop, questions[::-1]) == alone[::-1]
    assert len({str(answers) for answers in alone}) > COUNT // 2


def test_path_and_bytes_of_a_picture_give_the_same(loop: Batching, tmp_path: Path) -> None:
    content = encode_picture(draw_picture(random.Random(1), (160, 120)).image)
    (tmp_path / "a.png").write_bytes(content)
    by_path, by_bytes = loop.answer_all([str(tmp_path / "a.png"), content], [Ask("<CAPTION>")])
    assert by_path[0] == by_bytes[0]
