"""Results in a place of their own: files that the usual libraries read, each picture in one of them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from florence_daemon.cluster.parts import FORMS, Parts, Record, open_parts
from florence_daemon.errors import DatasetError
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
    parts.prepare()
    return parts


def test_what_is_written_is_known_as_done(tmp_path: Path, form: str) -> None:
    parts = opened(tmp_path / "results", form)
    assert parts.done() == frozenset()
    parts.write([*PATHS, "/photos/failed.jpg"], RECORDS)
    assert opened(tmp_path / "results", form).done() == frozenset(PATHS)
    assert [path.name.startswith("part-") for path in (tmp_path / "results").iterdir()] == [True]


def test_batch_that_is_done_again_finds_its_file(tmp_path: Path, form: str) -> None:
    parts = opened(tmp_path, form)
    assert parts.held(PATHS) == frozenset()
    parts.write(PATHS, RECORDS)
    parts.write(list(reversed(PATHS)), RECORDS)
    assert parts.held(PATHS) == frozenset(PATHS)
    assert parts.held(["/photos/other.jpg"]) == frozenset()
    assert len(list(tmp_path.iterdir())) == 1


def test_results_go_into_a_store_too(bucket: Bucket, form: str) -> None:
    parts = opened("s3://pictures/results", form)
    parts.write(PATHS, RECORDS)
    assert opened("s3://pictures/results", form).done() == frozenset(PATHS)
    assert [key.startswith("results/part-") for key in bucket.list()] == [True]


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
    (part,) = tmp_path.iterdir()
    assert json.loads(part.read_text()) == {
        "image": "/a.jpg",
        "json": {"results": []},
        "txt": "ä",
        "width": 1,
        "height": 1,
    }


def test_webdataset_holds_picture_and_texts_under_one_key(tmp_path: Path) -> None:
    opened(tmp_path, "webdataset").write(PATHS, RECORDS)
    (part,) = tmp_path.iterdir()
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
    (part,) = tmp_path.iterdir()
    part.write_text("{")
    with pytest.raises(DatasetError, match="cannot be read as jsonl"):
        opened(tmp_path, "jsonl").done()
