"""The sidecar of places: one object, with all that a program needs."""

from __future__ import annotations

import json
import os

from florence_daemon.engine.protocol import Ask
from florence_daemon.folders.structured import render_json

BOXES = {"bboxes": [[1.0, 2.0, 3.0, 4.0]], "labels": ["é"]}


def test_places_come_with_the_picture_that_they_count_in() -> None:
    text = render_json("ä.jpg", (640, 480), [Ask("<OD>")], [BOXES])
    assert "ä.jpg" in text
    assert json.loads(text) == {
        "image": "ä.jpg",
        "width": 640,
        "height": 480,
        "results": [{"prompt": "<OD>", "result": BOXES}],
    }


def test_every_answer_says_what_was_asked() -> None:
    asks = [Ask("<CAPTION>"), Ask("<OPEN_VOCABULARY_DETECTION>", "a red car")]
    results = json.loads(render_json("a.jpg", (1, 1), asks, ["a street", {"bboxes": []}]))["results"]
    assert results == [
        {"prompt": "<CAPTION>", "result": "a street"},
        {"prompt": "<OPEN_VOCABULARY_DETECTION>", "text": "a red car", "result": {"bboxes": []}},
    ]


def test_name_that_is_not_unicode_is_escaped() -> None:
    name = os.fsdecode(b"\xff.jpg")
    text = render_json(name, (1, 1), [Ask("<OD>")], [BOXES])
    assert json.loads(text.encode("utf-8"))["image"] == name
