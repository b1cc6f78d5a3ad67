"""Prompts: how they are found and fed. Answers: how the model's words become text, boxes and polygons."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence_daemon.errors import PromptError
from florence_daemon.tasks import TASKS, fed_text, find_task, parse_answer, prompt_tokens, split_prompt

THOUSAND_PX = (1000, 1000)
REGION = "<loc_52><loc_332><loc_932><loc_774>"


def parse(prompt: str, generated: str, size_px: tuple[int, int] = THOUSAND_PX) -> object:
    return parse_answer(split_prompt(prompt)[0], generated, size_px)


def test_promptgens_seven_come_first_and_every_task_is_there_once() -> None:
    seven = "GENERATE_TAGS CAPTION DETAILED_CAPTION MORE_DETAILED_CAPTION ANALYZE MIXED_CAPTION MIXED_CAPTION_PLUS"

    assert prompt_tokens()[:7] == [f"<{name}>" for name in seven.split()]
    assert len(set(prompt_tokens())) == len(prompt_tokens()) == 19


@pytest.mark.parametrize("prompt", ["<CAPTION>", "CAPTION", "caption", "<Caption>", " <caption> ", "cApTiOn"])
def test_prompts_are_found_in_any_case_with_or_without_brackets(prompt: str) -> None:
    task, text = find_task(prompt)

    assert (task.token, text) == ("<CAPTION>", None)


@pytest.mark.parametrize(
    "prompt", ["", "<>", "<CAPTION", "CAPTION>", "<NOPE>", "describe this", "<CAPTI ON>", "\0", "ſ"]
)
def test_an_unknown_prompt_is_named_and_the_prompts_are_listed(prompt: str) -> None:
    with pytest.raises(PromptError, match=r"^Invalid prompt ") as raised:
        find_task(prompt)

    assert ascii(prompt) in str(raised.value)
    assert all(token in str(raised.value) for token in prompt_tokens())


def test_a_huge_unknown_prompt_is_shown_in_part() -> None:
    with pytest.raises(PromptError) as raised:
        find_task("x" * 100_000)

    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "prompt",
    [
        "<OPEN_VOCABULARY_DETECTION> a red car",
        "open_vocabulary_detection a red car",
        "<Open_Vocabulary_Detection>a red car",
    ],
)
def test_text_can_follow_the_token(prompt: str) -> None:
    task, text = find_task(prompt)

    assert text == "a red car"
    assert fed_text(task, text) == "Locate a red car in the image."


def test_text_can_come_apart_from_the_prompt() -> None:
    assert find_task("<CAPTION_TO_PHRASE_GROUNDING>", " a cat ")[1] == "a cat"
    assert find_task("<CAPTION_TO_PHRASE_GROUNDING> a cat", "a cat")[1] == "a cat"


def test_two_different_texts_are_refused() -> None:
    with pytest.raises(PromptError, match="two texts, 'a cat' behind the token and 'a dog' apart"):
        find_task("<CAPTION_TO_PHRASE_GROUNDING> a cat", "a dog")


def test_od_with_a_word_looks_for_it_and_keeps_the_form_of_its_answer() -> None:
    task, text = find_task("<OD> cat")

    assert fed_text(task, text) == "Locate cat in the image."
    assert fed_text(*find_task("<OD>")) == "Locate the objects with category name in the image."
    assert parse("<OD>", "cat" + REGION) == {"bboxes": [[52.5, 332.5, 932.5, 774.5]], "labels": ["cat"]}


@pytest.mark.parametrize("prompt", ["<CAPTION> a cat", "ocr a cat", "<GENERATE_TAGS>: cat"])
def test_text_for_a_task_that_takes_none_is_refused(prompt: str) -> None:
    with pytest.raises(PromptError, match=r"takes no text, but got '.*cat'"):
        find_task(prompt)


@pytest.mark.parametrize(
    "task", [task for task in TASKS if task.needs in ("text", "region")], ids=lambda task: task.token
)
def test_a_missing_text_or_region_is_asked_for_with_an_example(task) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PromptError, match=f"{task.token} needs a {task.needs}.*{task.token}"):
        find_task(task.token)
    with pytest.raises(PromptError, match=task.token):
        fed_text(task, "  ")


def test_a_region_is_fed_without_blanks() -> None:
    task, text = find_task("<REGION_TO_CATEGORY> <loc_52> <loc_332> <loc_932> <loc_774>")

    assert fed_text(task, text) == f"What is the region {REGION}?"


@pytest.mark.parametrize(
    "region",
    [
        "a cat",
        "<loc_1><loc_2><loc_3>",
        REGION + "<loc_1>",
        "<loc_1><loc_2><loc_3><loc_1000>",
        "<loc_١><loc_2><loc_3><loc_4>",
        "1,2,3,4",
    ],
)
def test_a_malformed_region_is_refused(region: str) -> None:
    with pytest.raises(PromptError, match="<REGION_TO_OCR> needs a region <loc_x1>"):
        find_task("<REGION_TO_OCR>", region)


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(PromptError, match="not valid Unicode"):
        find_task("<OPEN_VOCABULARY_DETECTION>", "caf\udce9")


def test_braces_in_a_text_are_fed_as_they_are() -> None:
    task, text = find_task("<OPEN_VOCABULARY_DETECTION>", "{text} {0}")

    assert fed_text(task, text) == "Locate {text} {0} in the image."


@pytest.mark.parametrize(
    ("prompt", "text", "fed"),
    [
        ("<CAPTION>", None, "What does the image describe?"),
        ("<DETAILED_CAPTION>", None, "Describe in detail what is shown in the image."),
        ("<MORE_DETAILED_CAPTION>", None, "Describe with a paragraph what is shown in the image."),
        ("<OCR>", None, "What is the text in the image?"),
        ("<OCR_WITH_REGION>", None, "What is the text in the image, with regions?"),
        ("<DENSE_REGION_CAPTION>", None, "Locate the objects in the image, with their descriptions."),
        ("<REGION_PROPOSAL>", None, "Locate the region proposals in the image."),
        ("<CAPTION_TO_PHRASE_GROUNDING>", "a cat", "Locate the phrases in the caption: a cat"),
        ("<REFERRING_EXPRESSION_SEGMENTATION>", "a cat", "Locate a cat in the image with mask"),
        ("<REGION_TO_SEGMENTATION>", REGION, f"What is the polygon mask of region {REGION}"),
        ("<REGION_TO_DESCRIPTION>", REGION, f"What does the region {REGION} describe?"),
        ("<REGION_TO_OCR>", REGION, f"What text is in the region {REGION}?"),
    ],
)
def test_tasks_feed_the_originals_sentences(prompt: str, text: str | None, fed: str) -> None:
    assert fed_text(*find_task(prompt, text)) == fed


@pytest.mark.parametrize("name", ["GENERATE_TAGS", "ANALYZE", "MIXED_CAPTION", "MIXED_CAPTION_PLUS"])
def test_promptgens_prompts_are_fed_letter_for_letter(name: str) -> None:
    assert fed_text(*find_task(name.lower())) == f"<{name}>"


def test_text_comes_without_its_frame_and_keeps_its_lines_and_escapes() -> None:
    answer = parse("<MIXED_CAPTION>", "</s><s>A cat \\(black\\).\ncat, \\(black\\)</s><pad><pad>")

    assert answer == "A cat \\(black\\).\ncat, \\(black\\)"


def test_a_frame_that_hides_in_another_does_not_leak() -> None:
    assert parse("<CAPTION>", "<p<pad>ad>a<<s>/s>") == "a"


def test_each_box_of_a_label_gets_it() -> None:
    generated = (
        "</s><s>cat<loc_0><loc_10><loc_20><loc_999>dog<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8></s>"
    )

    assert parse("<OD>", generated, (2000, 500)) == {
        "bboxes": [[1.0, 5.25, 41.0, 499.75], [3.0, 1.25, 7.0, 2.25], [11.0, 3.25, 15.0, 4.25]],
        "labels": ["cat", "dog", "dog"],
    }


def test_labels_keep_letters_of_every_alphabet() -> None:
    assert parse("<DENSE_REGION_CAPTION>", "Café 猫" + REGION)["labels"] == ["Café 猫"]  # type: ignore[index]


@pytest.mark.parametrize(
    "generated",
    [
        "cat",
        "cat<loc_1><loc_2><loc_3>",
        REGION,
        "cat<loc_1><loc_2><loc_3><loc_1000>",
        "<loc_",
        "<loc_99999999999999999999>" * 9,
        "",
    ],
)
def test_boxes_that_are_not_whole_or_have_no_label_are_dropped(generated: str) -> None:
    assert parse("<OD>", generated) == {"bboxes": [], "labels": []}


def test_marks_between_labels_do_not_get_into_them() -> None:
    answer = parse("<OD>", f"<od>cat{REGION}<and>dog{REGION}</od>")

    assert answer["labels"] == ["cat", "dog"]  # type: ignore[index]


def test_proposals_have_empty_labels() -> None:
    assert parse("<REGION_PROPOSAL>", REGION + REGION + "<loc_1>") == {
        "bboxes": [[52.5, 332.5, 932.5, 774.5]] * 2,
        "labels": ["", ""],
    }


def test_grounding_leaves_out_phrases_that_name_nothing() -> None:
    answer = parse("<CAPTION_TO_PHRASE_GROUNDING>", f"The image{REGION} it{REGION} a green car{REGION}{REGION}")

    assert answer["labels"] == ["The image", "a green car", "a green car"]  # type: ignore[index]


def test_text_with_regions_becomes_quadrilaterals() -> None:
    quad = "".join(f"<loc_{bin_}>" for bin_ in range(8))

    assert parse("<OCR_WITH_REGION>", f"</s><s>A < B{quad}cut off<loc_1>", (1000, 2000)) == {
        "quad_boxes": [[0.5, 3.0, 2.5, 7.0, 4.5, 11.0, 6.5, 15.0]],
        "labels": ["A < B"],
    }


def test_outlines_of_one_thing_are_kept_together() -> None:
    outline = "<loc_0><loc_0><loc_9><loc_0><loc_9><loc_9>"

    assert parse("<REFERRING_EXPRESSION_SEGMENTATION>", f"{outline}<sep>{outline}<loc_5>") == {
        "polygons": [[[0.5, 0.5, 9.5, 0.5, 9.5, 9.5]] * 2],
        "labels": [""],
    }


def test_each_poly_is_a_thing_of_its_own() -> None:
    poly = "<poly><loc_0><loc_0><loc_9><loc_0><loc_9><loc_9></poly>"

    assert parse("<REGION_TO_SEGMENTATION>", poly * 2)["labels"] == ["", ""]  # type: ignore[index]


def test_open_vocabulary_gives_boxes_or_polygons() -> None:
    outline = "<loc_0><loc_0><loc_9><loc_0><loc_9><loc_9>"

    assert parse("<OPEN_VOCABULARY_DETECTION>", f"a cat{REGION}") == {
        "bboxes": [[52.5, 332.5, 932.5, 774.5]],
        "bboxes_labels": ["a cat"],
        "polygons": [],
        "polygons_labels": [],
    }
    assert parse("<OPEN_VOCABULARY_DETECTION>", f"a cat<poly>{outline}</poly>") == {
        "bboxes": [],
        "bboxes_labels": [],
        "polygons": [[[0.5, 0.5, 9.5, 0.5, 9.5, 9.5]]],
        "polygons_labels": ["a cat"],
    }


PIECES = st.sampled_from(
    ["cat", " ", "\n", "<", ">", "é", "<s>", "</s>", "<pad>", "<sep>", "<poly>", "</poly>", "<and>", "<od>", "<loc_"]
    + [f"<loc_{bin_}>" for bin_ in (0, 5, 999, 1000, 10**30)]
)


@given(st.sampled_from(TASKS), st.lists(PIECES, max_size=40).map("".join))
def test_no_answer_raises_or_leaks_its_frame(task, generated: str) -> None:  # type: ignore[no-untyped-def]
    answer = parse_answer(task, generated, (640, 480))

    assert not re.search(r"<pad>|</?s>", repr(answer))
    if isinstance(answer, dict):
        places = answer.get("bboxes", answer.get("quad_boxes", answer.get("polygons")))
        assert len(places) == len(answer["bboxes_labels" if "bboxes_labels" in answer else "labels"])


@pytest.mark.parametrize(
    ("said", "tags"),
    [
        ("cat,  mat, cat ,, dog,", "cat, mat, dog"),
        ("red circle, red circle", "red circle"),
        (" , ,", ""),
        ("one", "one"),
    ],
)
def test_a_tag_counts_once(said: str, tags: str) -> None:
    assert parse_answer(find_task("GENERATE_TAGS")[0], f"</s><s>{said}</s>", (10, 10)) == tags
