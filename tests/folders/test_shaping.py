"""What becomes of a model's words on the way into a file, option by option."""

from __future__ import annotations

import time
from typing import Any

import pytest

from florence_daemon.config_output import OutputConfig
from florence_daemon.folders.shaping import captions_and_tags, shape


def of_caption(answer: str, **options: Any) -> str:
    return shape(OutputConfig(prompt="CAPTION", ext="txt", **options), [answer])


def of_tags(answer: str, **options: Any) -> str:
    return shape(OutputConfig(prompt="GENERATE_TAGS", ext="txt", **options), [answer])


def of_mixed(answer: str, **options: Any) -> str:
    return shape(OutputConfig(prompt="MIXED_CAPTION", ext="txt", **options), [answer])


def of_both(caption: str, tags: str, **options: Any) -> str:
    return shape(OutputConfig(prompts=("CAPTION", "GENERATE_TAGS"), ext="txt", **options), [caption, tags])


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        (" a  cat \n\n on a mat ", {}, "a cat, on a mat"),
        ("A cat.\nfur, paws", {}, "A cat. fur, paws"),
        ("A cat.\non a mat", {"join": " | "}, "A cat. | on a mat"),
        ("A cat.\n\non a mat", {"lines": "several"}, "A cat.\non a mat"),
        ("A cat.\non a mat", {"lines": "several", "join": "\n\n"}, "A cat.\n\non a mat"),
        ("a cat", {"prefix": "ohwx, ", "suffix": ", photo"}, "ohwx, a cat, photo"),
        (" \n ", {"prefix": "ohwx, "}, ""),
        ("The image shows a cat.", {"strip": ("the image shows",)}, "a cat."),
        ("The image shows: a photo of a cat", {"strip": ("a photo of", "The image shows")}, "a cat"),
        ("The image showsomething", {"strip": ("The image show",)}, "The image showsomething"),
        ("This is a photo of a cat", {"strip": ("This is", "This is a photo of")}, "a cat"),
        ("The image shows", {"strip": ("The image shows",)}, ""),
        ("a cat, on a mat, asleep", {"max_words": 3}, "a cat, on"),
        ("a cat, on a mat", {"max_words": 2}, "a cat"),
        ("one two\nthree four\nfive", {"max_words": 3}, "one two, three"),
        ("A Cat.", {"case": "lower"}, "a cat."),
        ("It shows a cat. it sleeps.", {"strip": ("it shows",), "case": "sentence"}, "A cat. it sleeps."),
        ("a cat (black)", {"parentheses": "escape"}, r"a cat \(black\)"),
        (r"a cat \(black\)", {"parentheses": "escape"}, r"a cat \(black\)"),
        (r"a cat \(black\)", {"parentheses": "plain"}, "a cat (black)"),
        (r"a cat \(black\)", {}, r"a cat \(black\)"),
        ("a {b} cat", {"template": "{{{caption}}}"}, "{a {b} cat}"),
        ("snake_case stays", {"underscores": "spaces"}, "snake_case stays"),
    ],
)
def test_caption(answer: str, options: dict[str, Any], expected: str) -> None:
    assert of_caption(answer, **options) == expected


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("long_hair, ^_^, o_o, 1girl", {}, "long_hair, ^_^, o_o, 1girl"),
        ("long_hair, ^_^, o_o, 1girl", {"underscores": "spaces"}, "long hair, ^_^, o_o, 1girl"),
        ("a, b, A, a", {}, "a, b"),
        ("cat, watermark, Simple_Background", {"exclude_tags": ("Watermark", "*background")}, "cat"),
        (r"saber \(fate\), cat", {"exclude_tags": ("saber_(fate)",)}, "cat"),
        ("1girl, cat, woman", {"replace_tags": (("1girl", "woman"), ("cat", "feline, pet"))}, "woman, feline, pet"),
        ("1girl, cat", {"replace_tags": (("1girl", ""),)}, "cat"),
        ("tree, solo, 1girl", {"first_tags": ("1girl", "ohwx", "solo")}, "1girl, solo, tree"),
        ("a, b, c", {"max_tags": 2}, "a, b"),
        ("tree, solo, 1girl", {"first_tags": ("1girl",), "exclude_tags": ("tree",), "max_tags": 1}, "1girl"),
        ("Cat, TREE", {"case": "lower"}, "cat, tree"),
        ("saber (fate)", {"parentheses": "escape"}, r"saber \(fate\)"),
        ("tree", {"exclude_tags": ("tree",), "prefix": "ohwx, "}, ""),
        ("tree", {"replace_tags": (("tree", "oak, ash, elm, fir, yew"),)}, "oak, ash, elm, fir, yew"),
        ("The image shows, cat", {"strip": ("the image shows",), "max_words": 1}, "The image shows, cat"),
    ],
)
def test_tags(answer: str, options: dict[str, Any], expected: str) -> None:
    assert of_tags(answer, **options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "A black_cat. fur, long_tail, fur_ball"),
        ({"underscores": "spaces", "max_tags": 2}, "A black_cat. fur, long tail"),
        ({"template": "{tags}, {caption}"}, "fur, long_tail, fur_ball, A black_cat."),
        ({"lines": "several"}, "A black_cat.\nfur, long_tail, fur_ball"),
        ({"exclude_tags": ("*",)}, "A black_cat."),
    ],
)
def test_line_of_tags_in_a_mixed_answer_follows_the_options_of_tags(options: dict[str, Any], expected: str) -> None:
    assert of_mixed("A black_cat.\nfur, long_tail, fur_ball", **options) == expected


def test_sentences_of_a_mixed_answer_are_no_tags() -> None:
    assert of_mixed("A cat.\nIt is black, very black.", exclude_tags=("*",)) == "A cat. It is black, very black."


@pytest.mark.parametrize(
    ("caption", "tags", "options", "expected"),
    [
        ("a cat", "fur, paws", {}, "a cat, fur, paws"),
        ("A cat.", "fur", {"template": "{prefix}{caption}, {tags}", "prefix": "ohwx, "}, "ohwx, A cat., fur"),
        ("a cat", "fur", {"template": "{tags}. {caption}{suffix}", "suffix": "!"}, "fur. a cat!"),
        ("a cat", "fur", {"template": "{CAPTION} [{GENERATE_TAGS}]"}, "a cat [fur]"),
        ("a cat", "", {"template": "{prefix}{caption}, {tags}"}, "a cat"),
        ("", "fur", {"template": "{prefix}{caption}, {tags}", "prefix": "ohwx, "}, "ohwx, fur"),
        ("", "", {"template": "{prefix}{caption}, {tags}", "prefix": "ohwx, "}, ""),
        ("a cat", "fur", {"template": "{caption}\n{tags}", "lines": "several"}, "a cat\nfur"),
    ],
)
def test_several_answers_make_one_text(caption: str, tags: str, options: dict[str, Any], expected: str) -> None:
    assert of_both(caption, tags, **options) == expected


def test_caption_and_tags_come_apart_for_files_that_keep_them_apart() -> None:
    output = OutputConfig(prompts=("MIXED_CAPTION", "GENERATE_TAGS"), ext="xmp", underscores="spaces")
    assert captions_and_tags(output, ["A cat.\nlong_tail, fur", "fur, paws"]) == (
        "A cat.",
        ("long tail", "fur", "paws"),
    )


def test_options_that_are_meant_to_take_long_do_not() -> None:
    many = ", ".join(f"t{number}" for number in range(10_000))
    began_s = time.process_time()
    text = of_tags(
        ", ".join(f"a{number}" for number in range(50)),
        replace_tags=tuple((f"a{number}", many) for number in range(50)),
        exclude_tags=(*(f"*x*{number}*y*" for number in range(500)), "t1*"),
    )
    assert time.process_time() - began_s < 20
    assert len(text.split(", ")) == 10_000 - 1_111
