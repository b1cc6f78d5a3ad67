"""Batching while decoding: who is read, seen and decoded when, and that nobody pays for another."""

from __future__ import annotations

from concurrent.futures import Executor

import pytest
from PIL import Image

from florence_daemon.demo_pictures import encode_picture
from florence_daemon.engine.batching import Batching
from florence_daemon.engine.preprocess import Picture
from florence_daemon.engine.protocol import Answer, Ask, Begun, Done, EngineSettings, Failed, Progress, Request
from florence_daemon.errors import PictureError
from tests.conftest import AtOnce
from tests.engine.fake_backend import CHECKPOINT, FakeBackend


def picture(colour: int) -> bytes:
    return encode_picture(Image.new("RGB", (4, 4), (colour, 0, 0)))


class Setup:
    """A loop over the fake network, and everything that it replied."""

    def __init__(self, batch: int, picture_batch: int = 1, pool: Executor | None = None) -> None:
        self.backend = FakeBackend(picture_batch)
        settings = EngineSettings("demo", num_beams=1)
        self.loop = Batching(self.backend, CHECKPOINT, settings, batch, pool=pool or AtOnce())
        self.begun: list[int] = []
        self.ends: dict[int, Done | Failed] = {}
        self.steps = 0

    def put(self, colour: int, tokens: int = 5, *prompts: str, urgent: bool = False) -> None:
        """Ask about a picture of this colour, which is the request's number too, for so many tokens."""
        asks = tuple(Ask(prompt, max_new_tokens=tokens) for prompt in prompts or ("<CAPTION>",))
        self.loop.put(Request(colour, picture(colour), asks, urgent), self.note)

    def note(self, reply: Progress) -> None:
        if isinstance(reply, Begun):
            self.begun.append(reply.id)
        if isinstance(reply, Done | Failed):
            self.ends[reply.id] = reply

    def run(self, steps: int | None = None) -> None:
        """Take so many steps, or all that there are."""
        while (steps is None or steps > 0) and self.loop.run_once():
            steps = None if steps is None else steps - 1

    def answers(self, number: int) -> tuple[Answer, ...]:
        end = self.ends[number]
        assert isinstance(end, Done), end
        return end.answers

    def message(self, number: int) -> str:
        end = self.ends[number]
        assert isinstance(end, Failed)
        return end.message


def answer_alone(colour: int, tokens: int = 5) -> tuple[Answer, ...]:
    setup = Setup(batch=8)
    setup.put(colour, tokens)
    setup.run()
    return setup.answers(colour)


def test_one_that_is_done_leaves_and_the_next_takes_its_place() -> None:
    setup = Setup(batch=2)
    setup.put(10, 3)
    setup.put(20, 6)
    setup.put(30, 3)
    setup.run()
    assert list(setup.ends) == [10, 30, 20]
    assert setup.backend.events == [
        *("see 1", "step 1", "see 1", "step 2", "step 2"),
        *("see 1", "step 2", "step 2", "step 2", "step 1"),
    ]


def test_answers_do_not_depend_on_the_others_nor_on_when_they_join() -> None:
    setup = Setup(batch=4, picture_batch=3)
    lengths = {colour: 4 + colour % 7 for colour in range(10, 190, 10)}
    for colour, tokens in lengths.items():
        setup.put(colour, tokens)
    setup.run()
    found = {colour: setup.answers(colour) for colour in lengths}
    assert found == {colour: answer_alone(colour, tokens) for colour, tokens in lengths.items()}
    assert len(set(found.values())) == len(found)


def test_all_prompts_of_a_picture_share_its_vision() -> None:
    setup = Setup(batch=4)
    setup.put(10, 5, "<CAPTION>", "<MORE_DETAILED_CAPTION>", "<GENERATE_TAGS>")
    setup.run()
    assert setup.backend.events == ["see 1", *["step 3"] * 5]
    assert [answer.prompt for answer in setup.answers(10)] == [
        "<CAPTION>",
        "<MORE_DETAILED_CAPTION>",
        "<GENERATE_TAGS>",
    ]
    assert len({str(answer.result) for answer in setup.answers(10)}) == 3


def test_picture_is_answered_when_its_last_question_is() -> None:
    setup = Setup(batch=4)
    asks = (Ask("<CAPTION>", max_new_tokens=2), Ask("<GENERATE_TAGS>", max_new_tokens=6))
    setup.loop.put(Request(1, picture(1), asks), setup.note)
    setup.run(5)
    assert not setup.ends
    setup.run(1)
    assert [answer.prompt for answer in setup.answers(1)] == ["<CAPTION>", "<GENERATE_TAGS>"]


def test_pictures_are_seen_together_when_as_many_slots_are_free() -> None:
    setup = Setup(batch=4, picture_batch=4)
    for colour in range(10, 90, 10):
        setup.put(colour, 3 if colour < 50 else 2)
    setup.run()
    assert setup.backend.events == ["see 4", *["step 4"] * 3, "see 4", *["step 4"] * 2]


def test_last_pictures_do_not_wait_for_a_whole_batch() -> None:
    setup = Setup(batch=4, picture_batch=4)
    for colour in (10, 20, 30, 40):
        setup.put(colour, 2 if colour < 20 else 5)
    setup.put(50, 2)
    setup.run()
    assert setup.backend.events[:5] == ["see 4", "step 4", "step 4", "see 1", "step 4"]


def test_urgent_question_enters_a_full_decoder_at_once_and_nothing_is_seen_beside_it() -> None:
    setup = Setup(batch=2)
    for colour in range(10, 60, 10):
        setup.put(colour, 20 if colour < 30 else 4)
    setup.run(4)
    assert len(setup.backend.events) == 4 + 2
    setup.backend.events.clear()
    setup.put(200, 5, urgent=True)
    setup.run(5)
    assert list(setup.ends) == [200]
    assert setup.backend.events == ["see 1", *["step 3"] * 5]
    assert setup.answers(200) == answer_alone(200)


def test_slot_that_comes_free_beside_an_urgent_question_stays_free_until_it_is_done() -> None:
    setup = Setup(batch=2)
    setup.put(10, 3)
    setup.put(20, 20)
    setup.put(30, 5)
    setup.run(2)
    setup.put(200, 4, urgent=True)
    setup.backend.events.clear()
    setup.run(5)
    assert setup.backend.events == ["see 1", "step 3", "step 2", "step 2", "step 2", "see 1", "step 2"]
    assert list(setup.ends) == [10, 200]


def test_urgent_picture_is_read_and_seen_before_those_that_came_earlier() -> None:
    setup = Setup(batch=1)
    for colour in range(10, 100, 10):
        setup.put(colour, 2)
    setup.put(200, 2, urgent=True)
    assert setup.begun[-1] == 200
    setup.run()
    assert next(iter(setup.ends)) == 200


def test_bad_ones_fail_alone_and_say_why() -> None:
    setup = Setup(batch=4)
    setup.put(10)
    setup.loop.put(Request(1, b"not a picture", (Ask("<CAPTION>"),)), setup.note)
    setup.loop.put(Request(2, picture(2), (Ask("<CAPTION>"), Ask("<NOPE>"))), setup.note)
    setup.loop.put(Request(3, picture(3), (Ask("<OPEN_VOCABULARY_DETECTION>", "a dog " * 2000),)), setup.note)
    setup.put(20)
    setup.run()
    errors = {number: end.error for number, end in setup.ends.items() if isinstance(end, Failed)}
    assert errors == {1: "PictureError", 2: "PromptError", 3: "PromptError"}
    assert "is not a picture that can be read" in setup.message(1)
    assert "is too long" in setup.message(3)
    assert [setup.answers(colour) for colour in (10, 20)] == [answer_alone(10), answer_alone(20)]


def test_request_that_asks_nothing_ends_too() -> None:
    setup = Setup(batch=4)
    setup.loop.put(Request(1, picture(1), ()), setup.note)
    setup.run()
    assert "Nothing is asked" in setup.message(1)


def test_few_pictures_are_read_ahead_however_many_wait() -> None:
    setup = Setup(batch=2)
    for colour in range(1, 60):
        setup.put(colour)
    assert len(setup.begun) == setup.loop.read_ahead == 4
    while len(setup.ends) < 59:
        setup.run(1)
        assert len(setup.begun) <= len(setup.ends) + setup.loop.batch + setup.loop.read_ahead
    assert setup.begun == list(range(1, 60))


def test_pixels_that_are_read_ahead_are_bounded_for_large_pictures_too() -> None:
    setup = Setup(batch=2, picture_batch=100_000)
    held_bytes = setup.loop.read_ahead * 3 * 128 * 128 * 4
    assert 250 * 2**20 < held_bytes <= 256 * 2**20


def test_short_memory_halves_the_batch_and_costs_no_answer() -> None:
    setup = Setup(batch=8)

    def two_fit(colours: list[int]) -> None:
        if len(colours) > 2:
            raise MemoryError

    setup.backend.on_step = two_fit
    for colour in range(10, 90, 10):
        setup.put(colour)
    setup.run()
    assert setup.loop.batch <= 2
    assert [setup.answers(colour) for colour in range(10, 90, 10)] == [answer_alone(n) for n in range(10, 90, 10)]


def test_short_memory_while_pictures_are_seen_halves_the_batch_too() -> None:
    setup = Setup(batch=8, picture_batch=8)

    def three_fit(colours: list[int]) -> None:
        if len(colours) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    setup.backend.on_see = three_fit
    for colour in range(10, 90, 10):
        setup.put(colour)
    setup.run()
    assert {event for event in setup.backend.events if event.startswith("see")} == {"see 2"}
    assert [setup.answers(colour) for colour in range(10, 90, 10)] == [answer_alone(n) for n in range(10, 90, 10)]


def test_picture_that_does_not_fit_alone_fails_with_what_to_do() -> None:
    setup = Setup(batch=4)

    def too_much(colours: list[int]) -> None:
        if 20 in colours:
            raise MemoryError

    setup.backend.on_step = too_much
    for colour in (10, 20, 30):
        setup.put(colour, 5, "<CAPTION>", "<GENERATE_TAGS>")
    setup.run()
    assert "not enough memory for this picture; free some, or set model.num_beams" in setup.message(20)
    assert [len(setup.answers(colour)) for colour in (10, 30)] == [2, 2]


@pytest.mark.parametrize("stage", ["on_see", "on_step"])
def test_picture_that_the_model_fails_on_fails_alone(stage: str) -> None:
    setup = Setup(batch=4, picture_batch=4)

    def fail(colours: list[int]) -> None:
        if 20 in colours:
            raise ValueError("no such colour")

    setattr(setup.backend, stage, fail)
    for colour in (10, 20, 30, 40):
        setup.put(colour)
    setup.run()
    assert setup.message(20) == "the model failed on this picture: ValueError('no such colour')"
    assert [setup.answers(colour) for colour in (10, 30, 40)] == [answer_alone(n) for n in (10, 30, 40)]
    setup.backend.events.clear()
    for colour in (50, 60):
        setup.put(colour)
    setup.run()
    assert setup.backend.events[:2] == ["see 2", "step 2"], "once it is over, they are batched again"


def test_gpu_that_is_lost_ends_the_process_and_blames_no_picture() -> None:
    setup = Setup(batch=4)

    def lose(colours: list[int]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    setup.backend.on_step = lose
    setup.put(10)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        setup.run()
    assert not setup.ends


def test_seconds_of_the_model_are_divided_among_those_that_shared_them() -> None:
    setup = Setup(batch=4, picture_batch=2)
    for colour in (10, 20):
        setup.put(colour)
    setup.run()
    first, second = (end.stages for end in setup.ends.values() if isinstance(end, Done))
    assert first.vision_s == second.vision_s > 0
    assert first.text_s > 0
    assert first.decode_s > 0


def test_answering_all_keeps_the_order_with_threads_of_its_own() -> None:
    loop = Batching(FakeBackend(picture_batch=2), CHECKPOINT, EngineSettings("demo", num_beams=1), batch=3)
    colours = list(range(10, 210, 10))
    found = loop.answer_all([picture(colour) for colour in colours], [Ask("<CAPTION>", max_new_tokens=5)])
    assert [tuple(answers) for answers, _ in found] == [answer_alone(colour) for colour in colours]


def test_answering_one_takes_a_picture_that_is_read_already() -> None:
    loop = Setup(batch=3).loop
    image = Image.new("RGB", (4, 4), (10, 0, 0))
    assert tuple(loop.answer(Picture(image, (4, 4)), [Ask("<CAPTION>", max_new_tokens=5)])[0]) == answer_alone(10)


def test_answering_all_raises_what_a_picture_is_refused_for() -> None:
    loop = Batching(FakeBackend(), CHECKPOINT, EngineSettings("demo"), batch=3)
    with pytest.raises(PictureError, match="is not a picture"):
        loop.answer_all([picture(1), b"not a picture"], [Ask("<CAPTION>", max_new_tokens=5)])


def test_closed_loop_gives_up_what_it_holds() -> None:
    setup = Setup(batch=2)
    setup.put(10)
    setup.run(1)
    setup.loop.close()
    assert not setup.loop.run_once(None)
    assert not setup.ends
