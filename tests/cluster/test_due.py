"""What a backfill of folders and stores finds to do, by listing alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from florence_daemon.cluster.addresses import Folder, Store, open_trees
from florence_daemon.cluster.due import Due, Wish
from florence_daemon.cluster.forms import Record
from florence_daemon.cluster.parts import open_parts
from florence_daemon.config import Config, ModelConfig
from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import PictureError, UsageError
from florence_daemon.folders.atomic import PREFIX
from tests.cluster.stores import Bucket

CAPTION = OutputConfig(prompt="CAPTION", ext="txt")
TAGS = OutputConfig(prompt="GENERATE_TAGS", ext="tag")
CONFIG = Config(model=ModelConfig(name="demo"))


def due_at(*addresses: str | Path, wish: Wish | None = None, done: frozenset[str] = frozenset()) -> Due:
    return Due(open_trees([str(each) for each in addresses]), wish or Wish((CAPTION,)), CONFIG, done=done)


def found(due: Due, below: str = "") -> list[str]:
    """Each picture, the endings that it lacks, and whether there is something against it."""
    said = []
    for errand, reason in due.errands():
        name = errand.image.path.removeprefix(below).lstrip("/")
        lacks = "+".join(output.ending for output in errand.image.outputs)
        said.append(f"{name} {lacks}" if reason is None else f"{name} {reason}")
    return said


def test_pictures_that_lack_a_sidecar_are_found_in_a_store(bucket: Bucket) -> None:
    for key in ("a/1.jpg", "a/1.txt", "a/2.jpg", "a/b/3.png", "a/b/notes.md", "a/.hidden/4.jpg", "z.jpg"):
        bucket.put(key, b"x")
    due = due_at("s3://pictures", wish=Wish((CAPTION, TAGS)))
    assert found(due, "s3://pictures") == [
        "z.jpg .txt+.tag",
        "a/1.jpg .tag",
        "a/2.jpg .txt+.tag",
        "a/b/3.png .txt+.tag",
    ]
    assert due.found == 4
    assert found(due_at("s3://pictures/a/b"), "s3://pictures") == ["a/b/3.png .txt"]
    assert found(due_at("s3://pictures/a/2.jpg", "s3://pictures/a/1.jpg"), "s3://pictures") == ["a/2.jpg .txt"]


def test_everything_is_due_when_it_is_to_be_written_anew_or_elsewhere(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("1.jpg", "1.txt", "2.jpg", "2.txt"):
        bucket.put(name, b"x")
        (tmp_path / name).touch()
    wish = Wish((CAPTION,), rewrites=True)
    assert found(due_at("s3://pictures", tmp_path)) == []
    assert len(found(due_at("s3://pictures", tmp_path, wish=wish))) == 4
    done = frozenset({"s3://pictures/1.jpg", str(tmp_path / "2.jpg")})
    apart = due_at("s3://pictures", tmp_path, wish=Wish((CAPTION,), is_apart=True), done=done)
    assert [errand.image.path for errand, _ in apart.errands()] == ["s3://pictures/2.jpg", str(tmp_path / "1.jpg")]
    assert [errand.store for errand, _ in apart.errands()] == [0, None]


def test_pictures_that_share_a_sidecar_are_told_of(bucket: Bucket) -> None:
    for key in ("a.jpg", "a.png"):
        bucket.put(key, b"x")
    first, second = found(due_at("s3://pictures"), "s3://pictures")
    assert first == "a.jpg .txt"
    assert "belongs to a.jpg" in second


def test_settings_of_a_directory_count_in_a_store_as_on_disk(bucket: Bucket, tmp_path: Path) -> None:
    settings = "prefix: 'ohwx, '\nexclude: [no*]\noutputs: [{prompt: OCR, ext: ocr}]\n"
    for key, content in {"1.jpg": "x", "sub/2.jpg": "x", "sub/no.jpg": "x", "sub/deep/3.jpg": "x"}.items():
        bucket.put(key, content.encode())
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_text(content)
    bucket.put("sub/.florence.yaml", settings.encode())
    (tmp_path / "sub" / ".florence.yaml").write_text(settings)
    in_store = found(due_at("s3://pictures"), "s3://pictures")
    assert in_store == ["1.jpg .txt", "sub/2.jpg .ocr", "sub/deep/3.jpg .ocr"]
    assert in_store == found(due_at(tmp_path), str(tmp_path))
    images = {Path(errand.image.path).name: errand.image for errand, _ in due_at("s3://pictures").errands()}
    assert [images[name].outputs[0].prefix for name in ("1.jpg", "2.jpg", "3.jpg")] == ["", "ohwx, ", "ohwx, "]


def test_wrong_settings_of_a_directory_are_said_of_its_pictures_and_those_below(bucket: Bucket) -> None:
    for key in ("1.jpg", "sub/2.jpg", "sub/deep/3.jpg"):
        bucket.put(key, b"x")
    bucket.put("sub/.florence.yaml", b"prefixx: x\n")
    good, second, third = found(due_at("s3://pictures"), "s3://pictures")
    assert good == "1.jpg .txt"
    for said in (second, third):
        assert "s3://pictures/sub/.florence.yaml:1: prefixx: unknown setting" in said


def test_what_a_killed_run_left_unfinished_in_a_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    left = tmp_path / f"{PREFIX}0123456789ab-{2**22 + 1}"
    left.touch()
    list(due_at(tmp_path).errands())
    assert left.exists()
    list(due_at(tmp_path).errands(cleans=True))
    assert not left.exists()


def test_only_a_store_needs_pyarrow_and_a_path_stays_a_path(tmp_path: Path) -> None:
    assert open_trees([str(tmp_path), f"file://{tmp_path}"]) == [Folder(tmp_path), Folder(tmp_path)]
    with pytest.raises(PictureError, match="no such file or folder"):
        open_trees([str(tmp_path / "none")])
    (tmp_path / "a.txt").touch()
    with pytest.raises(PictureError, match="not a picture's name"):
        open_trees([str(tmp_path / "a.txt")])


def test_place_that_is_not_there_or_not_known_is_said(bucket: Bucket) -> None:
    with pytest.raises(PictureError, match="s3://pictures/none: there is no such"):
        open_trees(["s3://pictures/none"])
    with pytest.raises(PictureError, match="s3://other: there is no such"):
        open_trees(["s3://other"])
    with pytest.raises(PictureError, match="what://ever: cannot be reached"):
        open_trees(["what://ever"])


@pytest.mark.parametrize(
    "folder", ["my photos", "ünï", "100%", "p%20q", "h#sh", "q?u", "a+b", "[x]", "c:d", "me@home:x", "it's"]
)
def test_names_in_an_address_are_as_they_are_listed(bucket: Bucket, folder: str) -> None:
    bucket.put(f"{folder}/{folder}.jpg", b"x")
    (listed,) = [errand.image.path for errand, _ in due_at("s3://pictures").errands()]
    assert listed == f"s3://pictures/{folder}/{folder}.jpg"
    assert [errand.image.path for errand, _ in due_at(f"s3://pictures/{folder}").errands()] == [listed]
    assert [errand.image.path for errand, _ in due_at(listed).errands()] == [listed]
    parts = open_parts(f"s3://pictures/{folder}/out", "jsonl")
    parts.claim()
    parts.write([listed], [Record(listed, {"txt": "x"}, (1, 1))])
    assert parts.done() == {listed}


def test_options_of_a_store_may_stand_behind_its_address(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("a b/1.jpg", b"x")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    server = bucket.url.removeprefix("http://")
    due = due_at(f"s3://pictures/a b?scheme=http&endpoint_override={server}")
    assert found(due) == ["s3://pictures/a b/1.jpg .txt"]


@pytest.mark.parametrize(
    "address", ["s3://AKEY:sec@pictures/none", "s3://AKEY:se/c@pictures/x", "ftps://me:se@there/x"]
)
def test_password_in_an_address_is_not_printed(bucket: Bucket, address: str) -> None:
    with pytest.raises(PictureError) as caught:
        open_trees([address])
    said = str(caught.value)
    assert "***@" in said
    assert not re.search("sec|se/c|:se@", said)


def test_other_stores_go_through_fsspec() -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    files = MemoryFileSystem()
    files.pipe_file("/album/1.jpg", b"x")
    (store,) = open_trees(["memory://album"])
    assert isinstance(store, Store)
    assert found(due_at("memory://album")) == ["memory:///album/1.jpg .txt"]
    store.write("/album/1.txt", b"caption")
    assert files.cat_file("/album/1.txt") == b"caption"
    assert [os.path.basename(name) for name in files.ls("/album", detail=False)] == ["1.jpg", "1.txt"]
    assert found(due_at("memory://album")) == []


def test_xmp_is_refused_where_there_is_nothing_to_merge_it_into(bucket: Bucket, tmp_path: Path) -> None:
    xmp = OutputConfig(prompt="CAPTION", ext="xmp")
    bucket.put("1.jpg", b"x")
    assert "merged into files on disk" in found(due_at("s3://pictures", wish=Wish((xmp,))))[0]
    with pytest.raises(UsageError, match="leave out --to"):
        due_at(tmp_path, wish=Wish((xmp,), is_apart=True))


def test_name_of_a_column_is_no_ending_for_results_in_one_place(tmp_path: Path) -> None:
    width = OutputConfig(prompt="CAPTION", ext="width")
    assert found(due_at(tmp_path, wish=Wish((width,)))) == []
    with pytest.raises(UsageError, match="--ext width: with --to this says something else"):
        due_at(tmp_path, wish=Wish((width,), is_apart=True))
