"""Results in a place of their own: files that the usual libraries read, each picture in one of them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from florence_daemon.cluster.forms import FORMS, Record
from florence_daemon.cluster.parts import MARK, Parts, Turn, open_parts
from florence_daemon.errors import DatasetError
from florence_daemon.folders.atomic import PREFIX
from tests.cluster.stores import Bucket

RECORDS = (
    Record("/photos/a.jpg", {"txt": "a red circle", "tag": "red, circle"}, (640, 480), content=b"jpeg a"),
    Record("/photos/sub/b.PNG", {"txt": "ein blaues Quadrat", "tag": "blue"}, (32, 24), content=b"png b"),
)
PATHS = [record.path for record in RECORDS]


@pytest.fixture(params=list(FORMS))
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(place: str | Path, form: str) -> Parts:
    parts = open_parts(str(place), form)
    parts.claim()
    return parts


def files_in(place: Path) -> list[Path]:
    """The results; a run's own mark is hidden."""
    return sorted(place.glob("part-*"))


def record(path: str, text: str = "a red circle") -> Record:
    return Record(path, {"txt": text}, (1, 1), content=b"jpeg")


def test_what_is_written_is_known_as_done(tmp_path: Path, form: str) -> None:
    parts = opened(tmp_path / "results", form)
    assert parts.done() == frozenset()
    parts.write([*PATHS, "/photos/failed.jpg"], RECORDS)
    assert opened(tmp_path / "results", form).done() == frozenset(PATHS)
    assert len(files_in(tmp_path / "results")) == 1


def test_batch_that_is_done_again_finds_its_file(tmp_path: Path, form: str) -> None:
    parts = opened(tmp_path, form)
    assert parts.held(PATHS) == frozenset()
    parts.write(PATHS, RECORDS)
    parts.write(list(reversed(PATHS)), RECORDS)
    assert parts.held(PATHS) == frozenset(PATHS)
    assert parts.held(["/photos/other.jpg"]) == frozenset()
    assert len(files_in(tmp_path)) == 1


def test_results_go_into_a_store_too(bucket: Bucket, form: str) -> None:
    parts = opened("s3://pictures/results", form)
    parts.write(PATHS, RECORDS)
    assert opened("s3://pictures/results", form).done() == frozenset(PATHS)
    assert [key.startswith("results/part-") for key in bucket.list() if not key.endswith(MARK)] == [True]


def test_parquet_is_a_table_of_texts(tmp_path: Path) -> None:
    from pyarrow import parquet

    opened(tmp_path, "parquet").write(PATHS, RECORDS)
    table = parquet.read_table(tmp_path)
    assert table.column_names == ["image", "txt", "tag", "width", "height"]
    assert table.to_pylist()[0] == {
        "image": "/photos/a.jpg",
        "txt": "a red circle",
        "tag": "red, circle",
        "width": 640,
        "height": 480,
    }


def test_structured_answers_are_objects_in_json_lines(tmp_path: Path) -> None:
    record = Record("/a.jpg", {"json": '{"results": []}', "txt": "ä"}, (1, 1), frozenset({"json"}))
    opened(tmp_path, "jsonl").write(["/a.jpg"], [record])
    (part,) = files_in(tmp_path)
    assert json.loads(part.read_text()) == {
        "image": "/a.jpg",
        "json": {"results": []},
        "txt": "ä",
        "width": 1,
        "height": 1,
    }


def test_webdataset_holds_picture_and_texts_under_one_key(tmp_path: Path) -> None:
    opened(tmp_path, "webdataset").write(PATHS, RECORDS)
    (part,) = files_in(tmp_path)
    with tarfile.open(part) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    keys = list(dict.fromkeys(name.partition(".")[0] for name in members))
    assert [name.partition(".")[2] for name in members] == ["jpg", "txt", "tag", "json", "png", "txt", "tag", "json"]
    assert members[f"{keys[0]}.jpg"] == b"jpeg a"
    assert members[f"{keys[1]}.txt"] == b"ein blaues Quadrat"
    assert json.loads(members[f"{keys[1]}.json"])["image"] == "/photos/sub/b.PNG"


def test_place_of_another_format_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    opened(tmp_path, "jsonl").write(PATHS, RECORDS)
    with pytest.raises(DatasetError, match="is of another format"):
        opened(tmp_path, "parquet")
    (part,) = files_in(tmp_path)
    part.write_text("{")
    with pytest.raises(DatasetError, match="cannot be read as jsonl"):
        opened(tmp_path, "jsonl").done()


def test_run_that_another_took_the_place_of_writes_nothing_more(tmp_path: Path, form: str) -> None:
    earlier = opened(tmp_path, form)
    earlier.write(["/a.jpg"], [record("/a.jpg")])
    with Turn(open_parts(str(tmp_path), form)) as turn:
        assert turn.done == {"/a.jpg"}
        with pytest.raises(DatasetError, match="another backfill writes there now"):
            earlier.write(["/b.jpg"], [record("/b.jpg")])
    with pytest.raises(DatasetError, match="another backfill"):
        earlier.write(["/b.jpg"], [record("/b.jpg")])
    assert [path.name[:5] for path in tmp_path.iterdir()] == ["part-"]


def test_end_of_an_earlier_run_leaves_the_place_to_the_later_one(tmp_path: Path) -> None:
    with Turn(open_parts(str(tmp_path), "jsonl")):
        later = opened(tmp_path, "jsonl")
    later.write(["/a.jpg"], [record("/a.jpg")])
    assert later.done() == {"/a.jpg"}


def test_part_that_an_earlier_run_was_just_writing_is_taken_out_at_the_end(tmp_path: Path, form: str) -> None:
    """What it had looked at before the next one began, and wrote after that had listed what is done."""
    place, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    opened(elsewhere, form).write(["/a.jpg", "/b.jpg"], [record("/a.jpg"), record("/b.jpg")])
    parts = open_parts(str(place), form)
    with Turn(parts) as turn:
        assert turn.done == frozenset()
        (late,) = files_in(elsewhere)
        late.rename(place / late.name)
        for path in ("/a.jpg", "/b.jpg", "/c.jpg"):
            parts.write([path], [record(path)])
    assert late.name not in {path.name for path in files_in(place)}
    assert sorted(path for part in files_in(place) for path in paths_in(part, form)) == ["/a.jpg", "/b.jpg", "/c.jpg"]


def test_next_run_takes_out_what_two_killed_ones_wrote_twice(tmp_path: Path, form: str) -> None:
    place, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    opened(place, form).write(["/a.jpg"], [record("/a.jpg")])
    opened(elsewhere, form).write(["/a.jpg", "/b.jpg"], [record("/a.jpg"), record("/b.jpg")])
    (other,) = files_in(elsewhere)
    other.rename(place / other.name)
    with Turn(open_parts(str(place), form)) as turn:
        (left,) = files_in(place)
        assert turn.done == frozenset(paths_in(left, form))


def paths_in(part: Path, form: str) -> list[str]:
    with part.open("rb") as file:
        return list(FORMS[form].paths(file))


def test_what_a_killed_run_left_unfinished_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f"{PREFIX}0123456789ab-{2**22 + 1}"
    left.touch()
    opened(tmp_path, "jsonl")
    assert not left.exists()


def test_names_and_texts_with_line_separators_are_read_again(tmp_path: Path, form: str) -> None:
    odd = "/photos/a\u2028b\x85c\nd.jpg"
    opened(tmp_path, form).write([odd], [record(odd, "one\u2028two")])
    assert opened(tmp_path, form).done() == {odd}
