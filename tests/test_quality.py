"""What is no caption, and what only looks like it."""

from __future__ import annotations

from typing import Any

import pytest

from florence_daemon.config import ModelConfig
from florence_daemon.engine.protocol import Answer, Ask, Done, Stages
from florence_daemon.quality import flaw_of, other_asks, reasons_against, with_others

LONG = (
    "The image shows a busy market square in the early morning. On the left side of the image there is a stall with "
    "red apples, green apples and yellow pears in wooden boxes. On the right side of the image there is a stall with "
    "fresh fish on ice, and a man in a blue apron who weighs a large salmon. Behind the stalls there is a row of old "
    "houses with white walls and brown roofs. In the middle of the image a woman in a red coat carries a basket, and a "
    "small dog walks beside her. The sky is pale blue, and the light is soft. On the ground there are puddles in which "
    "the houses are mirrored. In the background there is a church with a tall tower, and a flock of birds flies around "
    "it. The mood of the image is calm, and the colors of the image are warm."
)
ROWS = " ".join(
    f"In the {which} row there are a red square, a blue square, a green square and a {odd} circle."
    for which, odd in (("first", "white"), ("second", "black"), ("third", "gold"))
)
TAGS = (
    "1girl, solo, blue hair, blue eyes, blue dress, blue sky, long hair, very long hair, looking at viewer, smile, "
    "open mouth, hair ornament, hair ribbon, hair flower, red ribbon, red flower, red shoes, white shirt, white socks"
)


def answer(text: str, *, prompt: str = "<CAPTION>", tokens: int = 40, is_cut: bool = False) -> Answer:
    return Answer(prompt, text, tokens, is_cut)


def kind(text: str, **more: Any) -> str | None:
    flaw = flaw_of(answer(text, **more))
    return None if flaw is None else flaw.kind


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_nothing_is_no_caption(text: str) -> None:
    assert kind(text) == "empty"


@pytest.mark.parametrize(
    "text",
    [
        "a cat on a mat, a cat on a mat, a cat on a mat, a cat on a mat",
        "the sky is blue. " * 30 + "the sky",
        "no no no no no no no no",
        "A cat. a cat, A CAT a cat",
        "a photo of " + "very " * 12 + "old house",
        "猫が好き猫が好き猫が好き猫が好き",
        "a girl with long hair and a red ribbon in front of a white wall of an old house by the sea " * 4,
        " ".join(f"there is a {what} in the background of the image by the old house." for what in "abcdefghijk"),
    ],
)
def test_what_repeats_itself_is_a_loop(text: str) -> None:
    assert kind(text) == "loop"


@pytest.mark.parametrize(
    "text",
    [
        "a cat",
        LONG,
        ROWS,
        TAGS,
        "row after row after row after row of white houses",
        "a red car, a red car and a red car in front of a red house",
        "a neon sign that reads HA HA HA HA in red letters",
        "a street, " * 3 + "and a square",
        "猫と犬と鳥と魚が並んでいる写真、背景は青い空",
    ],
)
def test_what_people_say_twice_is_none(text: str) -> None:
    assert kind(text) is None


def test_what_is_written_in_a_picture_may_repeat_itself() -> None:
    tickets = "ADMIT ONE " * 20
    assert kind(tickets, prompt="<OCR>") is None
    assert kind(tickets, prompt="<CAPTION>") == "loop"


@pytest.mark.parametrize(
    "token", ["</s>", "<pad>", "<loc_52>", "<unk>", "<CAPTION>", "<GENERATE_TAGS>", "<od>", "</cap>", "<poly>"]
)
def test_tokens_of_the_models_own_are_no_words(token: str) -> None:
    flaw = flaw_of(answer(f"a cat {token} on a mat"))
    assert flaw is not None
    assert flaw.kind == "leak"
    assert token in flaw.reason


def test_other_words_in_angle_brackets_are_words() -> None:
    assert kind("a screen that shows <html> and <div>, and i <3 u, <lora:style:1>") is None


def test_region_that_was_asked_about_may_come_back() -> None:
    assert kind("car<loc_52><loc_332><loc_932><loc_774>", prompt="<REGION_TO_CATEGORY>") is None


def test_answer_that_was_cut_off_says_after_how_many_tokens() -> None:
    flaw = flaw_of(answer("a cat on a", tokens=6, is_cut=True))
    assert flaw is not None
    assert flaw.kind == "cut"
    assert "<CAPTION> was cut off after 6 tokens" in flaw.reason


def test_tags_that_were_written_again_and_again_are_a_loop_though_each_is_kept_once() -> None:
    assert kind("a cat, a mat", prompt="<GENERATE_TAGS>", tokens=1024, is_cut=True) == "loop"
    assert kind(TAGS, prompt="<GENERATE_TAGS>", tokens=75, is_cut=True) == "cut"


def test_boxes_may_be_none_but_not_cut_off() -> None:
    nothing: dict[str, Any] = {"bboxes": [], "labels": []}
    assert flaw_of(Answer("<OD>", nothing)) is None
    flaw = flaw_of(Answer("<OD>", nothing, 1024, is_cut=True))
    assert flaw is not None
    assert flaw.kind == "cut"


def done(*answers: Answer, content: bytes | None = b"1", text_s: float = 1.0) -> Done:
    return Done(1, answers, (10, 10), Stages(text_s=text_s), content)


MODEL = ModelConfig(num_beams=3, max_new_tokens=100)


def test_only_what_is_flawed_is_asked_once_more_and_its_answer_takes_the_others_place() -> None:
    asks = (Ask("<CAPTION>"), Ask("<GENERATE_TAGS>"), Ask("<MORE_DETAILED_CAPTION>"))
    first = done(answer("a cat"), answer("", prompt="<GENERATE_TAGS>"), answer("a", is_cut=True), content=b"1")
    others = other_asks(asks, first, MODEL)
    assert [ask.prompt for ask in others] == ["<GENERATE_TAGS>", "<MORE_DETAILED_CAPTION>"]
    second = done(answer("cat, mat", prompt="<GENERATE_TAGS>"), answer("a cat on a mat"), content=b"1")
    whole = with_others(first, second)
    assert [each.result for each in whole.answers] == ["a cat", "cat, mat", "a cat on a mat"]
    assert whole.stages.text_s == 2.0
    assert whole.content == b"1"
    assert reasons_against(whole) == ""


def test_answers_about_two_contents_of_a_file_count_for_none() -> None:
    first = done(answer(""), content=b"1")
    assert with_others(first, done(answer("a cat"), content=b"2")).content is None


def test_what_was_cut_off_may_be_longer_in_the_other_try() -> None:
    cut = done(answer("a cat on", tokens=100, is_cut=True))
    (ask,) = other_asks((Ask("<CAPTION>", num_beams=2),), cut, MODEL)
    assert (ask.max_new_tokens, ask.num_beams) == (400, 2)
    cut = done(answer("a cat on", tokens=20, is_cut=True))
    (ask,) = other_asks((Ask("<CAPTION>", max_new_tokens=20),), cut, MODEL)
    assert ask.max_new_tokens == 80
    (ask,) = other_asks((Ask("<CAPTION>", max_new_tokens=2000),), cut, MODEL)
    assert ask.max_new_tokens == 4096, "as much as a server lets anybody ask for"


@pytest.mark.parametrize(("beams", "others"), [(None, 1), (1, 3), (5, 1)])
def test_what_went_on_and_on_is_searched_with_other_beams_and_may_not_repeat_itself(
    beams: int | None, others: int
) -> None:
    for flawed in (answer("a b " * 20), answer("1girl, 2girls", tokens=1024, is_cut=True), answer("")):
        (ask,) = other_asks((Ask("<CAPTION>", num_beams=beams),), done(flawed), MODEL)
        assert ask.num_beams == others
        assert ask.no_repeat_ngram_size == 3
        assert ask.max_new_tokens is None
