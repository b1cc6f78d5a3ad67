"""`.florence.yaml`: what it changes of the settings above it, and what is said of a wrong one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from florence_daemon.config import FolderConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import ConfigError
from florence_daemon.overrides import Override, Settings

TXT = OutputConfig(prompt="CAPTION", ext="txt", prefix="old, ")
TAG = OutputConfig(prompt="GENERATE_TAGS", ext="tag", overwrite="never")
ABOVE = Settings(FolderConfig(path=Path("/pictures"), outputs=(TXT, TAG)))


def over(text: str, above: Settings = ABOVE, directory: str = "/pictures/sub") -> Settings:
    return Override(f"{directory}/.florence.yaml", text.encode()).over(above)


def error_of(text: str, above: Settings = ABOVE) -> str:
    with pytest.raises(ConfigError) as caught:
        over(text, above)
    return str(caught.value)


def test_empty_file_changes_nothing() -> None:
    found = over("# nothing yet\n")
    assert (found.outputs, found.overwrite) == (ABOVE.outputs, "never")


def test_option_counts_for_all_outputs_from_above() -> None:
    found = over("prefix: 'ohwx, '\n")
    assert [each.prefix for each in found.outputs] == ["ohwx, ", "ohwx, "]
    assert [each.ending for each in found.outputs] == [".txt", ".tag"]


def test_outputs_take_the_place_of_those_from_above() -> None:
    found = over("outputs: [{prompt: OD, ext: json}]\n")
    assert [each.ending for each in found.outputs] == [".json"]


def test_option_from_above_counts_for_outputs_below_unless_they_say_otherwise() -> None:
    above = over("prefix: 'ohwx, '\nsuffix: ', photo'\n")
    below = over("outputs: [{prompt: CAPTION, ext: txt}, {prompt: OCR, ext: ocr, prefix: ''}]\n", above)
    assert [(each.prefix, each.suffix) for each in below.outputs] == [("ohwx, ", ", photo"), ("", ", photo")]


def test_option_of_the_same_file_spares_the_output_that_says_otherwise() -> None:
    found = over("prefix: 'a, '\noutputs:\n  - {prompt: CAPTION, ext: txt, prefix: 'b, '}\n  - {prompt: OCR, ext: o}\n")
    assert [each.prefix for each in found.outputs] == ["b, ", "a, "]


def test_nearest_rule_wins_over_an_outputs_own_from_above() -> None:
    found = over("overwrite: stale\n")
    assert [each.rule(found.overwrite) for each in found.outputs] == ["stale", "stale"]


def test_patterns_count_from_their_directory_and_only_narrow() -> None:
    above = over("exclude: ['raw/*']\n", directory="/pictures")
    below = over("include: ['*.jpg']\n", above, directory="/pictures/sub")
    assert below.takes("/pictures/sub/a.jpg")
    assert below.takes("/pictures/sub/raw/a.jpg")
    assert not below.takes("/pictures/sub/a.png")
    assert not below.takes("/pictures/raw/a.jpg")


def test_what_is_fixed_stays() -> None:
    fixed = Settings(ABOVE.folder, options={"prefix": "mine, "}, fixed=frozenset({"prefix", "overwrite"}))
    found = over("overwrite: always\nprefix: x\noutputs: [{prompt: OCR, ext: txt, prefix: y, suffix: z}]\n", fixed)
    assert found.overwrite == "never"
    assert [(each.prefix, each.suffix) for each in found.outputs] == [("mine, ", "z")]


def test_output_of_a_file_has_no_rule_of_its_own_where_one_is_told() -> None:
    told = Settings(ABOVE.folder, fixed=frozenset({"overwrite"}))
    found = over("outputs: [{prompt: OCR, ext: txt, overwrite: always}]\n", told)
    assert [each.rule(found.overwrite) for each in found.outputs] == ["never"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prefixx: a\n", "/pictures/sub/.florence.yaml:1: prefixx: unknown setting; did you mean prefix?"),
        ("\noutputs:\n  - {prompt: CAPTON, ext: txt}\n", ".florence.yaml:3: outputs[0].prompt: Invalid prompt"),
        ("outputs: [{prompt: CAPTION, ext: jpg}]\n", ":1: outputs[0].ext: 'jpg' is a picture's ending"),
        ("outputs: [{prompt: CAPTION, ext: ../../x}]\n", "is not a file name's ending"),
        ("outputs: [{prompt: CAPTION, ext: a}, {prompt: OCR, ext: A}]\n", ":1: outputs: two outputs write"),
        ("outputs: []\n", ":1: outputs: must not be empty"),
        ("overwrite: sometimes\n", ":1: overwrite: 'sometimes' is not known; give one of never"),
        ("\n\nnum_beams: 99\n", ":3: num_beams: 99 is out of range"),
        ("include: '*.jpg'\n", ":1: include: '*.jpg' is not a list"),
        ("path: /etc\n", ":1: path: unknown setting"),
        ("prompt: OCR\n", ":1: prompt: unknown setting"),
        ("prefix: [", ":1: this is not YAML"),
        ("- a\n", "settings such as outputs, overwrite, include, exclude are expected"),
        ("prefix: a\nprefix: b\n", ":2: prefix: given before, on line 1"),
        ("prefix: !!python/object/apply:os.system ['true']\n", "this is not YAML"),
        ("prefix: 2024-01-01\n", "is not text"),
    ],
)
def test_wrong_file_says_where_and_what(text: str, expected: str) -> None:
    assert expected in error_of(text)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="this is not UTF-8 text"):
        Override("/pictures/.florence.yaml", b"prefix: \xff\xfe")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "prefix: &a [*a]\n",
        "prefix: " + "[" * 30_000,
        "outputs: [" + "{prompt: CAPTION, ext: txt}, " * 2_000 + "]\n",
        "".join(f"prefix{number}: a\n" for number in range(900)),
        "prefix: '" + "x" * 60_000,
        "num_beams: " + "9" * 60_000 + "\n",
        "? [a, b]\n: c\n",
        "? !!str {=: prefix}\n: c\n",
        "0x" + "f" * 6_000,
        f"max_words: 0x{'f' * 6_000}\n",
        f"{{0x{'f' * 200}: a}}",
        "prefix: !!timestamp x\n",
        "prefix: !!bool x\n",
        "num_beams: !!int ''\n",
        f"num_beams: 1:{'0:' * 300}0.5\n",
    ],
    ids=[
        *("billion laughs", "itself", "deep", "many", "unknown", "unclosed", "number", "key", "value as key"),
        *("hexadecimal", "hexadecimal value", "hexadecimal key", "no time", "no truth", "no number", "no seconds"),
    ],
)
def test_file_that_is_meant_to_harm_is_refused_soon_and_in_few_words(text: str) -> None:
    began_s = time.process_time()
    message = error_of(text)
    assert time.process_time() - began_s < 10
    assert len(message) < 2_000
