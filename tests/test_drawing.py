"""Pictures with what was found drawn in: where the lines and labels are, and which files are never written over."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageFont

from florence_daemon import labels
from florence_daemon.drawing import COLOURS, Place, colours_of, draw_places, encode_drawing, is_drawing, places_of
from florence_daemon.drawing_files import check_task, choose_names
from florence_daemon.errors import UsageError
from florence_daemon.labels import choose_spot
from florence_daemon.tasks import TASKS, find_task
from tests.conftest import run_command
from tests.pictures import SHAPES, SIZE_PX, jpeg, rotated_jpeg

GREY = (128, 128, 128)


def grey(size_px: tuple[int, int] = (400, 300)) -> Image.Image:
    return Image.new("RGB", size_px, GREY)


def changed_box(before: Image.Image, after: Image.Image) -> tuple[int, int, int, int]:
    box = ImageChops.difference(before, after).getbbox()
    assert box is not None
    return box


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


def test_every_structured_answer_is_read_as_places() -> None:
    assert places_of({"bboxes": [[1.0, 2.0, 30.0, 40.0]], "labels": ["cat"]}) == [
        Place("cat", (((1.0, 2.0), (30.0, 2.0), (30.0, 40.0), (1.0, 40.0)),))
    ]
    quad = places_of({"quad_boxes": [[0.0, 0.0, 9.0, 1.0, 9.0, 5.0, 0.0, 4.0]], "labels": ["EXIT"]})
    assert quad == [Place("EXIT", (((0.0, 0.0), (9.0, 1.0), (9.0, 5.0), (0.0, 4.0)),))]
    outlines = [[0.0, 0.0, 5.0, 0.0, 5.0, 5.0], [7.0, 7.0, 9.0, 7.0, 9.0, 9.0]]
    area = places_of({"polygons": [outlines, [[1.0, 1.0, 2.0, 2.0]]], "labels": ["", ""]})
    assert [(len(place.outlines), place.is_area, place.box_px) for place in area] == [(2, True, (0.0, 0.0, 9.0, 9.0))]
    both = {"bboxes": [[0, 0, 1, 1]], "bboxes_labels": ["a"], "polygons": [[outlines[0]]], "polygons_labels": ["b"]}
    assert [place.label for place in places_of(both)] == ["a", "b"]


def test_box_is_drawn_around_its_place_and_nowhere_else() -> None:
    drawn = draw_places(grey(), places_of({"bboxes": [[100, 100, 300, 200]], "labels": [""]}))
    left, top, right, bottom = changed_box(grey(), drawn)
    assert max(abs(left - 100), abs(top - 100), abs(right - 301), abs(bottom - 201)) <= 4
    assert pixel(drawn, 200, 150) == GREY
    assert pixel(drawn, 200, 100) in COLOURS


def test_box_along_the_edge_is_seen() -> None:
    drawn = draw_places(grey(), places_of({"bboxes": [[0, 0, 400, 300]], "labels": [""]}))
    for x, y in ((200, 0), (200, 299), (0, 150), (399, 150)):
        assert pixel(drawn, x, y) in COLOURS


def test_area_is_tinted_and_what_lies_under_it_stays_visible() -> None:
    drawn = draw_places(grey(), places_of({"polygons": [[[50, 50, 350, 50, 350, 250, 50, 250]]], "labels": [""]}))
    inside = pixel(drawn, 200, 150)
    assert inside != GREY
    assert inside not in COLOURS


def test_places_beyond_the_picture_do_no_harm() -> None:
    wild = {"polygons": [[[-50.0, -50.0, 900.0, -9.0, 900.0, 900.0]], [[500.0, 500, 600, 500, 600, 600]]]}
    draw_places(grey(), places_of({**wild, "labels": ["here", "there"]}))
    draw_places(Image.new("RGB", (1, 1)), places_of({"bboxes": [[0.0, 0.0, 1.0, 1.0]], "labels": ["tiny"]}))


def named(*names: str) -> list[Place]:
    return [Place(name, (((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)),)) for name in names]


def test_label_keeps_its_colour_in_every_picture() -> None:
    (alone,) = colours_of(named("cat"))
    assert colours_of(named("cat", "cat"))[0] == alone
    assert colours_of(named("Cat "))[0] == alone


def test_different_labels_of_a_picture_have_different_colours() -> None:
    many = colours_of(named(*(f"thing {number}" for number in range(len(COLOURS)))))
    assert len(set(many)) == len(COLOURS)
    assert len(set(colours_of(named(*"abcdefghijklmnopqrstuvwxyz")))) == len(COLOURS)


def test_places_without_a_name_are_told_apart() -> None:
    assert len(set(colours_of(named("", "", "")))) == 3


def test_labels_stay_inside_and_do_not_cover_each_other_while_there_is_room() -> None:
    placed: list[labels.Box] = []
    for around in [(10, 10, 60, 60)] * 4 + [(370, 270, 399, 299), (0, 0, 399, 299), (390, 0, 399, 9)]:
        box = choose_spot(around, (80, 20), (400, 300), placed, 4)
        assert 0 <= box[0] <= box[2] <= 400
        assert 0 <= box[1] <= box[3] <= 300
        assert not any(labels._overlap(box, other) for other in placed)
        placed.append(box)


def test_long_label_is_wrapped_and_cut() -> None:
    font = labels._own_font(20)
    text = labels._wrap("a very long description of what can be seen here " * 5, font, 200)
    lines = text.split("\n")
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 200 for line in lines)


def test_words_without_blanks_are_wrapped_too() -> None:
    font = labels._own_font(20)
    assert all(font.getlength(line) <= 100 for line in labels._wrap("x" * 60, font, 100).split("\n"))


def test_letters_that_no_font_has_are_replaced_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "SYSTEM_FONTS", ())
    assert labels._written("naïve café", 20)[1] == "naive cafe"
    assert labels._written("go 出口", 20)[1] == "go ??"
    assert not labels.has_font_for("出口")
    assert labels.has_font_for("really?")


def test_system_font_is_taken_for_letters_that_ours_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in labels.SYSTEM_FONTS if labels._system_font(name, 20)]
    if not names:
        pytest.skip("no font of the system is known here; on Debian: apt install fonts-dejavu-core")
    font, text = labels._written("Выход", 20)
    assert text == "Выход"
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert font is not labels._own_font(20)


def test_control_characters_of_a_label_are_escaped() -> None:
    assert labels._written("a\x1b[31m\nb", 20)[1] == r"a\x1b[31m b"


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_drawing_is_known_again(tmp_path: Path, suffix: str) -> None:
    ours, other = tmp_path / f"ours{suffix}", tmp_path / f"other{suffix}"
    ours.write_bytes(encode_drawing(grey(), suffix))
    grey().save(other)
    (tmp_path / "text.png").write_text("no picture")
    assert is_drawing(str(ours))
    assert not is_drawing(str(other))
    assert not is_drawing(str(tmp_path / "text.png"))
    assert not is_drawing(str(tmp_path / "nowhere.png"))


def test_names_in_a_folder_are_those_of_the_pictures() -> None:
    chosen = choose_names(["a.jpg", "x/A.png", "b.c.webp", "y/a.jpg"], "out/")
    assert chosen == {
        "a.jpg": os.path.join("out/", "a.drawn.png"),
        "x/A.png": os.path.join("out/", "A-2.drawn.png"),
        "b.c.webp": os.path.join("out/", "b.c.drawn.png"),
        "y/a.jpg": os.path.join("out/", "a-3.drawn.png"),
    }


def test_picture_is_never_drawn_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    grey().save("a.png")
    grey().save("mine.png")
    os.link("a.png", "linked.png")
    os.symlink("a.png", "symlinked.png")
    for target in ("a.png", "./a.png", str(tmp_path / "a.png"), "linked.png", "symlinked.png"):
        with pytest.raises(UsageError, match="never written over"):
            choose_names(["a.png"], target)
    with pytest.raises(UsageError, match="not drawn by this program"):
        choose_names(["a.png"], "mine.png")
    grey().save("a.drawn.png")
    with pytest.raises(UsageError, match="never written over"):
        choose_names(["a.jpg", "a.drawn.png"], ".")


@pytest.mark.parametrize(
    ("images", "to", "match"), [(["a.jpg"], "a.gif", "ends in .png"), (["a", "b"], "c.png", "one file")]
)
def test_target_that_makes_no_sense_is_refused(images: list[str], to: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        choose_names(images, to)


def test_only_tasks_that_find_places_can_be_drawn() -> None:
    for task in TASKS:
        if task.answer in ("text", "tags"):
            with pytest.raises(UsageError, match="answers with words"):
                check_task(task)
        else:
            check_task(task)
    with pytest.raises(UsageError, match=r"places: <OCR_WITH_REGION>, <OD>"):
        check_task(find_task("CAPTION")[0])


def test_command_draws_upright_copies_and_leaves_the_pictures_alone(tmp_path: Path) -> None:
    for name, content in (("a.jpg", jpeg()), ("b.jpg", rotated_jpeg())):
        (tmp_path / name).write_bytes(content)
    arguments = ("--prompt", "OD", "--draw", "out/", "--model", "demo", "--json")
    result = run_command("caption", "a.jpg", "b.jpg", "bad.jpg", *arguments, home=tmp_path)
    assert result.returncode == 1, result.stderr
    first, second, bad = (json.loads(line) for line in result.stdout.splitlines())
    assert first["drawing"] == os.path.join("out/", "a.drawn.png")
    assert set(bad) == {"image", "task", "error"}
    assert (tmp_path / "a.jpg").read_bytes() == jpeg()
    for line in (first, second):
        with Image.open(tmp_path / line["drawing"]) as drawn:
            assert drawn.size == SIZE_PX
            assert len(line["result"]["labels"]) == len(SHAPES)
            x1, y1, x2, _ = line["result"]["bboxes"][0]
            assert drawn.convert("RGB").getpixel((round((x1 + x2) / 2), round(y1))) in COLOURS
    again = run_command("caption", "a.jpg", "--prompt", "OD", "--draw", "a.jpg", "--model", "demo", home=tmp_path)
    assert (again.returncode, "never written over" in again.stderr) == (2, True)
