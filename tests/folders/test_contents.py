"""What a file is to hold, when there is something in it already."""

from __future__ import annotations

import json
from typing import Any

import pytest

from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import PoorAnswer, UnfitSidecar
from florence_daemon.folders.asking import asks_of_one
from florence_daemon.folders.contents import Said, content_of

CAPTION = OutputConfig(prompt="CAPTION", ext="txt")
TAGS = OutputConfig(prompt="GENERATE_TAGS", ext="txt")


def hold(output: OutputConfig, existing: bytes | None, rule: str, *results: str | dict[str, Any]) -> bytes | None:
    return content_of(output, Said("a.jpg", (640, 480), asks_of_one(output), results), existing, rule)


@pytest.mark.parametrize("rule", ["never", "stale", "append", "prepend", "always"])
def test_new_file_holds_the_text_and_the_end_of_its_line(rule: str) -> None:
    assert hold(CAPTION, None, rule, "a cät") == "a cät\n".encode()


@pytest.mark.parametrize(
    ("existing", "append", "prepend"),
    [
        (b"mine\n", b"mine, a cat\n", b"a cat, mine\n"),
        (b"Mine.", b"Mine. a cat\n", b"a cat, Mine.\n"),
        (b"\xef\xbb\xbfmine\r\n\r\n", b"mine, a cat\n", b"a cat, mine\n"),
        (b"one\ntwo\n", b"one\ntwo, a cat\n", b"a cat, one\ntwo\n"),
        (b"", b"a cat\n", b"a cat\n"),
        (b" \n", b"a cat\n", b"a cat\n"),
    ],
)
def test_text_is_added_behind_or_before_what_is_there(existing: bytes, append: bytes, prepend: bytes) -> None:
    assert hold(CAPTION, existing, "append", "a cat") == append
    assert hold(CAPTION, existing, "prepend", "a cat") == prepend


def test_text_is_added_as_a_line_of_its_own_where_lines_are_several() -> None:
    output = OutputConfig(prompt="CAPTION", ext="txt", lines="several")
    assert hold(output, b"mine\n", "append", "a cat\non a mat") == b"mine\na cat\non a mat\n"
    assert hold(output, b"mine\n", "prepend", "a cat") == b"a cat\nmine\n"


@pytest.mark.parametrize(
    "existing", [b"mine, a cat on a mat\n", b"a cat  on\na mat", b"(a cat on a mat)", b"a cat on a mat, mine"]
)
@pytest.mark.parametrize("rule", ["append", "prepend"])
def test_text_that_is_there_is_not_added_again(existing: bytes, rule: str) -> None:
    assert hold(CAPTION, existing, rule, "a cat on a mat") is None


def test_text_that_only_begins_another_word_is_not_there() -> None:
    assert hold(CAPTION, b"a cathedral\n", "append", "a cat") == b"a cathedral, a cat\n"


def test_only_the_tags_that_are_not_there_are_added() -> None:
    assert hold(TAGS, b"Long_hair, solo\n", "append", "solo, long hair, tree") == b"Long_hair, solo, tree\n"
    assert hold(TAGS, b"tree, solo, long hair\n", "append", "solo, long hair, tree") is None


@pytest.mark.parametrize("rule", ["append", "prepend"])
@pytest.mark.parametrize(
    "options",
    [{"join": ""}, {"join": " | "}, {"join": "und"}, {"prefix": "p "}, {"prefix": "p ", "join": "; "}, {"suffix": "s"}],
)
@pytest.mark.parametrize("existing", [b"mine", b"mine, tree", b"solo, tree, long hair", b"mine."])
def test_whatever_joins_it_nothing_is_added_twice(options: dict[str, str], rule: str, existing: bytes) -> None:
    for prompt in ("CAPTION", "GENERATE_TAGS"):
        output = OutputConfig(prompt=prompt, ext="txt", **options)
        once = hold(output, existing, rule, "solo, tree")
        assert once is None or hold(output, once, rule, "solo, tree") is None


def test_what_is_not_utf_8_is_not_added_to() -> None:
    with pytest.raises(UnfitSidecar, match="not UTF-8"):
        hold(CAPTION, b"caf\xe9", "append", "a cat")


@pytest.mark.parametrize("answer", ["", " \n "])
def test_empty_answer_is_an_error_not_a_file(answer: str) -> None:
    with pytest.raises(PoorAnswer, match="the model's answer to <CAPTION> was empty; nothing was written"):
        hold(CAPTION, None, "never", answer)


def test_answer_that_options_leave_nothing_of_is_an_error_not_a_file() -> None:
    output = OutputConfig(prompt="GENERATE_TAGS", ext="tag", exclude_tags=("*",))
    with pytest.raises(PoorAnswer, match=r"the options of \.tag leave nothing of the answer to <GENERATE_TAGS>"):
        hold(output, None, "never", "cat, tree")


def test_places_are_json() -> None:
    places = {"bboxes": [], "labels": ["é"]}
    content = hold(OutputConfig(prompt="OD", ext="json"), None, "never", places)
    assert content is not None
    assert json.loads(content)["results"] == [{"prompt": "<OD>", "result": places}]
