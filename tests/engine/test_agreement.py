"""The figures of agreement on cases that can be worked out by hand, and what they decide."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence_daemon.engine.agreement import (
    MIN_EDIT_SIMILARITY,
    MIN_PICTURES,
    Agreement,
    box_iou,
    compare,
    edit_distance,
    edit_similarity,
    objections,
    summarize,
    tag_overlap,
)

TEXTS = st.text("ab cd", max_size=80)


def plain_edit_distance(one: str, another: str) -> int:
    row = list(range(len(one) + 1))
    for letter in another:
        above, row = row, [row[0] + 1]
        for at, own in enumerate(one):
            row.append(min(above[at] + (own != letter), above[at + 1] + 1, row[at] + 1))
    return row[-1]


@given(TEXTS, TEXTS)
def test_edit_distance_is_that_of_the_whole_table(one: str, another: str) -> None:
    assert edit_distance(one, another) == plain_edit_distance(one, another)


@pytest.mark.parametrize(
    ("one", "another", "similarity"),
    [("", "", 1.0), ("", "cat", 0.0), ("cat", "cart", 0.75), ("kitten", "sitting", 4 / 7), ("łódź", "łodź", 0.75)],
)
def test_edit_similarity_is_what_remains_of_the_longer_text(one: str, another: str, similarity: float) -> None:
    assert edit_similarity(one, another) == pytest.approx(similarity)
    assert edit_similarity(another, one) == pytest.approx(similarity)


def test_edit_distance_of_long_texts_takes_no_noticeable_time() -> None:
    one, another = "a quick brown fox " * 220, "a quicker brown ox " * 220
    started_s = time.process_time()
    assert edit_distance(one, another) == 220 * 3
    assert time.process_time() - started_s < 1.0


@pytest.mark.parametrize(
    ("one", "another", "overlap"),
    [("a, b", "b, c", 1 / 3), ("1girl, red hair", "red hair,1girl, ", 1.0), ("", "", 1.0), ("a", "", 0.0)],
)
def test_tags_overlap_as_sets(one: str, another: str, overlap: float) -> None:
    assert tag_overlap(one, another) == pytest.approx(overlap)


def boxes(*labelled: tuple[str, list[float]]) -> dict[str, Any]:
    return {"bboxes": [box for _, box in labelled], "labels": [label for label, _ in labelled]}


CAT = ("cat", [0.0, 0.0, 10.0, 10.0])
DOG = ("dog", [20.0, 0.0, 30.0, 10.0])


def test_boxes_that_cover_each_other_half_have_an_iou_of_a_third() -> None:
    assert box_iou(boxes(CAT), boxes(("cat", [5.0, 0.0, 15.0, 10.0]))) == pytest.approx(1 / 3)


def test_order_of_boxes_does_not_matter_but_their_labels_do() -> None:
    assert box_iou(boxes(CAT, DOG), boxes(DOG, CAT)) == 1.0
    assert box_iou(boxes(CAT), boxes(("dog", CAT[1]))) == 0.0


def test_a_box_that_only_one_answer_has_counts_as_none() -> None:
    assert box_iou(boxes(CAT, DOG), boxes(CAT)) == pytest.approx(0.5)
    assert box_iou(boxes(), boxes(CAT)) == 0.0
    assert box_iou(boxes(), boxes()) == 1.0


def test_each_box_finds_one_partner_and_the_best_pair_comes_first() -> None:
    shifted = ("cat", [1.0, 0.0, 11.0, 10.0])
    # Were the shifted one to take the exact one, its own partner would be left with the other end of the picture.
    assert box_iou(boxes(shifted, CAT), boxes(CAT, ("cat", [2.0, 0.0, 12.0, 10.0]))) == pytest.approx((1 + 9 / 11) / 2)
    assert box_iou(boxes(CAT, CAT), boxes(CAT)) == pytest.approx(0.5)


def test_a_box_without_area_agrees_with_itself() -> None:
    line = ("line", [3.0, 3.0, 3.0, 9.0])
    assert box_iou(boxes(line), boxes(line)) == 1.0


def test_quadrilaterals_and_polygons_count_as_the_boxes_around_them() -> None:
    quad = {"quad_boxes": [[0.0, 5.0, 5.0, 0.0, 10.0, 5.0, 5.0, 10.0]], "labels": ["cat"]}
    polygons = {"polygons": [[[0.0, 0.0, 10.0, 0.0, 10.0, 4.0], [2.0, 10.0, 4.0, 4.0, 5.0, 5.0]]], "labels": ["cat"]}
    assert box_iou(quad, boxes(CAT)) == 1.0
    assert box_iou(polygons, boxes(CAT)) == 1.0


def test_open_vocabulary_has_labels_for_boxes_and_for_polygons() -> None:
    answer = {
        "bboxes": [CAT[1]],
        "bboxes_labels": ["cat"],
        "polygons": [[[20.0, 0.0, 30.0, 0.0, 30.0, 10.0]]],
        "polygons_labels": ["dog"],
    }
    assert box_iou(answer, boxes(CAT, DOG)) == 1.0


def test_texts_are_compared_by_letters_tags_by_overlap_too_and_boxes_by_place_alone() -> None:
    assert compare("<CAPTION>", ["cat", "dog"], ["cart", "dog"]) == Agreement("<CAPTION>", 2, 0.5, 0.875, 0.75)
    tags = compare("GENERATE_TAGS", ["a, b"], ["b, a"])
    assert (tags.same, tags.tag_overlap, tags.worst_edit_similarity) == (0.0, 1.0, 0.5)
    assert compare("<OD>", [boxes(CAT)], [boxes(CAT)]) == Agreement("<OD>", 1, 1.0, box_iou=1.0)


def test_summary_weighs_each_prompt_by_its_answers() -> None:
    texts = Agreement("<CAPTION>", 30, 1.0, 1.0, 0.9)
    tags = Agreement("<GENERATE_TAGS>", 10, 0.0, 0.6, 0.2, 0.8)
    summary = summarize([texts, tags, Agreement("<OD>", 10, 0.5, box_iou=0.7)])
    assert summary.answers == 50
    assert summary.same == pytest.approx(0.7)
    assert summary.edit_similarity == pytest.approx(0.9)
    assert (summary.worst_edit_similarity, summary.tag_overlap, summary.box_iou) == (0.2, 0.8, 0.7)


def test_near_answers_to_enough_pictures_meet_no_objection() -> None:
    reordered_tags = Agreement("<GENERATE_TAGS>", MIN_PICTURES, 0.0, 0.3, 0.1, tag_overlap=0.9)
    texts = Agreement("<CAPTION>", MIN_PICTURES, 0.5, MIN_EDIT_SIMILARITY, 0.2)
    assert objections([texts, reordered_tags, Agreement("<OD>", MIN_PICTURES, 0.5, box_iou=0.9)]) == []


@pytest.mark.parametrize(
    ("agreement", "objection"),
    [
        (Agreement("<CAPTION>", 19, 1.0, 1.0, 1.0), "<CAPTION>: 19 pictures were compared, 20 are needed"),
        (Agreement("<CAPTION>", 50, 0.9, 0.87, 0.1), "<CAPTION>: edit similarity is 0.870, 0.90 is needed"),
        (Agreement("<CAPTION>", 50, 0.9, float("nan"), 0.1), "<CAPTION>: edit similarity is nan, 0.90 is needed"),
        (Agreement("<GENERATE_TAGS>", 50, 0, 1, 1, 0.5), "<GENERATE_TAGS>: tag overlap is 0.500, 0.85 is needed"),
        (Agreement("<OD>", 50, 0.9, box_iou=0.84), "<OD>: box IoU is 0.840, 0.85 is needed"),
    ],
)
def test_one_prompt_that_disagrees_is_enough_to_object(agreement: Agreement, objection: str) -> None:
    good = Agreement("<DETAILED_CAPTION>", 50, 1.0, 1.0, 1.0)
    assert objections([good, agreement]) == [objection]


def test_nothing_compared_proves_nothing() -> None:
    assert objections([]) == ["no prompt was compared"]
