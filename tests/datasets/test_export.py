"""Data sets as their readers find them: whole, faithful, and nothing of the pictures' own folder changed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from florence_daemon.datasets.export import Taken, Wish, export, survey
from florence_daemon.datasets.formats import names_split
from florence_daemon.datasets.samples import LeftOut
from florence_daemon.errors import DatasetError, UsageError
from florence_daemon.export_command import open_tree
from tests.conftest import run_command
from tests.datasets.trees import CAPTIONS, tree_of, write_tree
from tests.pictures import SIZE_PX, jpeg

LYING_PX = SIZE_PX[::-1]  # how the turned picture is stored
NAMES = {"a": "a.jpg", "b.c": "b.c.png", "sub/a": "sub/a.jpeg", "sub/deep/turned": "sub/deep/turned.jpg"}
BY_NAME = {NAMES[stem]: text for stem, text in CAPTIONS.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(autouse=True)
def nothing_is_changed(root: Path) -> Iterator[None]:
    before = content_of(root)
    yield
    assert content_of(root) == before


def content_of(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write(root: Path, form: Any, to: Path, **wishes: Any) -> list[Taken | LeftOut]:
    tree = tree_of(root)
    return list(export(tree, Wish(form, to, **wishes), survey(tree)[1]))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_picture_without_a_caption_is_left_out_and_the_others_are_there(root: Path, tmp_path: Path) -> None:
    outcomes = write(root, "csv", tmp_path / "a.csv")
    left_out = [each for each in outcomes if isinstance(each, LeftOut)]
    assert left_out == [LeftOut(str(root / "sub" / "without.jpg"), "it has no caption without.txt")]
    assert [each.name for each in outcomes if isinstance(each, Taken)] == list(BY_NAME)


def test_imagefolder_has_the_pictures_and_one_line_for_each(root: Path, tmp_path: Path) -> None:
    write(root, "hf-imagefolder", tmp_path / "out")
    found = rows(tmp_path / "out" / "metadata.jsonl")
    assert {row["file_name"]: row["text"] for row in found} == BY_NAME
    assert [row["tags"] for row in found] == ["red circle, blue square", "", "", ""]
    for name in BY_NAME:
        assert (tmp_path / "out" / name).read_bytes() == (root / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["out"]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Hugging Face's own loader, with a cache of this test alone."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    return partial(datasets.load_dataset, split="train", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("placing", ["copy", "symlink"])
def test_imagefolder_is_loaded_by_datasets(root: Path, tmp_path: Path, load: Callable[..., Any], placing: Any) -> None:
    write(root, "hf-imagefolder", tmp_path / "out", placing=placing)
    for loaded in (load(str(tmp_path / "out")), load("imagefolder", data_dir=str(tmp_path / "out"))):
        assert [(row["text"], row["tags"]) for row in loaded] == [
            (text, "red circle, blue square" if stem == "a" else "") for stem, text in CAPTIONS.items()
        ]
        assert {row["image"].size for row in loaded} == {SIZE_PX}


def test_folder_that_is_called_like_a_split_is_loaded_whole(tmp_path: Path, load: Callable[..., Any]) -> None:
    for name in ("a.jpg", "test/b.jpg", "x/my-train-1.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(jpeg())
        (tmp_path / "in" / name).with_suffix(".txt").write_text(name)
    result = run_command("export", "in", "--format", "hf-imagefolder", "--to", "out", home=tmp_path)
    assert result.returncode == 0
    assert 'test/b.jpg reads like a split\'s name: load this as load_dataset("out")' in result.stderr
    assert [row["text"] for row in load(str(tmp_path / "out"))] == ["a.jpg", "test/b.jpg", "x/my-train-1.jpg"]


@pytest.mark.parametrize(
    ("name", "expected"), [("latest/a.jpg", False), ("testimony.jpg", False), ("b/Dev/a.jpg", True)]
)
def test_only_whole_words_read_like_splits(name: str, expected: bool) -> None:
    assert names_split(name) is expected


@pytest.mark.parametrize("placing", ["hardlink", "symlink"])
def test_pictures_can_be_linked(root: Path, tmp_path: Path, placing: Any) -> None:
    write(root, "hf-imagefolder", tmp_path / "out", placing=placing)
    for name in BY_NAME:
        assert os.path.samefile(tmp_path / "out" / name, root / name)
        assert (tmp_path / "out" / name).is_symlink() == (placing == "symlink")


def test_picture_that_cannot_be_linked_is_copied(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("florence_daemon.datasets.targets.os.link", refuse)
    monkeypatch.setattr("florence_daemon.folders.atomic.os.link", refuse)
    write(root, "hf-imagefolder", tmp_path / "out", placing="hardlink")
    assert (tmp_path / "out" / "a.jpg").read_bytes() == jpeg()
    assert not os.path.samefile(tmp_path / "out" / "a.jpg", root / "a.jpg")


def test_metadata_alone_goes_into_the_pictures_own_folder(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(root, own)
    before = content_of(own)
    write(own, "hf-imagefolder", own)
    after = content_of(own)
    assert {row["file_name"] for row in rows(own / "metadata.jsonl")} == set(BY_NAME)
    assert {path: content for path, content in after.items() if not path.endswith(".jsonl")} == before
    with pytest.raises(UsageError, match="--overwrite"):
        write(own, "hf-imagefolder", own)
    write(own, "hf-imagefolder", own, overwrite=True)


def read_as_kohya_does(metadata: Path, image_dir: str | None) -> dict[str, tuple[str, list[int]]]:
    """What sd-scripts' FineTuningDataset makes of it (library/finetuning_dataset.py): pictures, captions and sizes.

    Written after what it does, not copied: keys that are no absolute paths need `image_dir`; for those without a known
    file their ending is searched; tags are joined to the caption, of which only the first line is trained.
    """
    found = {}
    for key, entry in json.loads(metadata.read_text(encoding="utf-8")).items():
        path = key if os.path.isabs(key) else os.path.join(str(image_dir), key)
        if not os.path.splitext(key)[1] or not os.path.exists(path):
            endings = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
            path = next(path + ending for ending in endings if os.path.exists(path + ending))
        with Image.open(path) as image:  # it does not turn pictures
            assert tuple(entry["image_size"]) == image.size
        joined = ", ".join(text for text in (entry["caption"], entry.get("tags")) if text)
        found[path] = (joined.split("\n")[0], entry["image_size"])
    return found


@pytest.mark.parametrize("relative", [None, True])
def test_kohya_json_is_read_as_kohya_reads_it(root: Path, tmp_path: Path, relative: bool | None) -> None:
    write(root, "kohya-json", tmp_path / "meta.json", relative=relative)
    found = read_as_kohya_does(tmp_path / "meta.json", str(root) if relative else None)
    assert {os.path.relpath(path, root): caption for path, (caption, _) in found.items()} == BY_NAME | {
        "a.jpg": BY_NAME["a.jpg"] + ", red circle, blue square"
    }
    assert found[str(root / "sub" / "deep" / "turned.jpg")][1] == list(LYING_PX)


def test_csv_has_a_row_for_each_whatever_its_caption(root: Path, tmp_path: Path) -> None:
    write(root, "csv", tmp_path / "new" / "all.csv")
    with (tmp_path / "new" / "all.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert {row["file_name"]: row["text"] for row in found} == BY_NAME
    assert {(int(row["width"]), int(row["height"])) for row in found} == {SIZE_PX}
    assert not (tmp_path / "new" / "all.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    write(root, "csv", tmp_path / "paths.csv", relative=False)
    assert str(root / "a.jpg") in (tmp_path / "paths.csv").read_text(encoding="utf-8")


def read_shards(folder: Path) -> list[dict[str, bytes]]:
    """As webdataset does: members that follow one another and have their name up to the first dot in common."""
    samples: list[dict[str, bytes]] = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                if not samples or samples[-1]["__key__"] != key.encode():
                    samples.append({"__key__": key.encode()})
                file = tar.extractfile(member)
                assert file is not None
                samples[-1][ending] = file.read()
    return samples


def test_webdataset_has_picture_caption_and_description_under_one_key(root: Path, tmp_path: Path) -> None:
    write(root, "webdataset", tmp_path / "out", shard_samples=3)
    assert sorted(os.listdir(tmp_path / "out")) == ["00000.tar", "00001.tar"]
    samples = read_shards(tmp_path / "out")
    assert [sample["__key__"] for sample in samples] == [b"000000000", b"000000001", b"000000002", b"000010000"]
    assert [set(sample) for sample in samples] == [
        {"__key__", ending, "txt", "json"} for ending in ("jpg", "png", "jpg", "jpg")
    ]
    for sample, (name, text) in zip(samples, BY_NAME.items(), strict=True):
        described = json.loads(sample["json"])
        assert sample["txt"].decode() == text == described["caption"]
        assert described["file_name"] == name
        assert described["key"].encode() == sample["__key__"]
        assert (described["width"], described["height"]) == SIZE_PX
        picture = sample.get("jpg") or sample["png"]
        assert picture == (root / name).read_bytes()


def test_same_pictures_give_the_same_shards(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(root, "webdataset", tmp_path / name)
    assert (tmp_path / "one" / "00000.tar").read_bytes() == (tmp_path / "two" / "00000.tar").read_bytes()


def spoiled(folder: Path) -> Path:
    """One good picture among those that no data set can hold."""
    folder.mkdir()
    for name in ("good.jpg", "pair.jpg", "pair.png", "latin.jpg", "empty.jpg"):
        (folder / name).write_bytes(jpeg())
    (folder / "bad.jpg").write_bytes(b"no picture")
    for stem in ("good", "pair", "bad"):
        (folder / f"{stem}.txt").write_text("a caption")
    (folder / "latin.txt").write_bytes("Grün".encode("latin-1"))
    (folder / "empty.txt").write_text("\n")
    return folder


def test_every_picture_that_is_left_out_has_its_reason(tmp_path: Path) -> None:
    folder = spoiled(tmp_path / "in")
    name = os.fsdecode(b"\xff")
    for suffix in (".jpg", ".txt"):
        shutil.copy(folder / f"good{suffix}", folder / f"{name}{suffix}")
    outcomes = write(folder, "csv", tmp_path / "out.csv")
    reasons = {os.path.basename(each.path): each.reason for each in outcomes if isinstance(each, LeftOut)}
    assert reasons["pair.jpg"] == "it shares pair.txt with pair.png; rename one of them"
    assert reasons["pair.png"] == "it shares pair.txt with pair.jpg; rename one of them"
    assert reasons["latin.jpg"] == "its caption latin.txt is not UTF-8: byte 0xfc at 2"
    assert reasons["empty.jpg"] == "its caption empty.txt is empty"
    assert reasons["bad.jpg"].startswith("is not a picture that can be read")
    assert reasons[f"{name}.jpg"].startswith("its name is not UTF-8")
    assert [each.name for each in outcomes if isinstance(each, Taken)] == ["good.jpg"]


def test_imagefolder_leaves_out_what_its_reader_does_not_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.heic"):
        (tmp_path / "in" / name).write_bytes(jpeg())  # readers go by the name
        (tmp_path / "in" / name).with_suffix(".txt").write_text("a caption")
    outcomes = write(tmp_path / "in", "hf-imagefolder", tmp_path / "out")
    assert [each.reason for each in outcomes if isinstance(each, LeftOut)] == [
        "Hugging Face's imagefolder does not read .heic"
    ]


@pytest.mark.parametrize("form", ["hf-imagefolder", "kohya-json", "csv", "webdataset"])
def test_without_any_caption_nothing_is_written(tmp_path: Path, form: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(jpeg())
    with pytest.raises(DatasetError, match="no picture has a caption"):
        write(tmp_path / "in", form, tmp_path / "out")
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("form", ["hf-imagefolder", "kohya-json", "csv", "webdataset"])
def test_interrupted_export_leaves_nothing_behind(root: Path, tmp_path: Path, form: Any) -> None:
    tree = tree_of(root)
    steps = iter([False, True])
    with pytest.raises(KeyboardInterrupt):
        list(export(tree, Wish(form, tmp_path / "out"), True, lambda: next(steps)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("form", ["hf-imagefolder", "kohya-json", "csv", "webdataset"])
def test_what_is_there_already_stays(root: Path, tmp_path: Path, form: Any) -> None:
    target = tmp_path / "out"
    if form in ("hf-imagefolder", "webdataset"):
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        target.write_text("mine")
    with pytest.raises(UsageError, match="already"):
        write(root, form, target)
    assert [path.read_text() for path in (target, target / "mine") if path.is_file()] == ["mine"]


def test_file_is_replaced_when_that_is_asked_for(root: Path, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("old")
    write(root, "kohya-json", tmp_path / "meta.json", overwrite=True)
    assert len(json.loads((tmp_path / "meta.json").read_text(encoding="utf-8"))) == len(BY_NAME)


def test_earlier_export_in_the_folder_is_not_exported_again(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(root, own)
    write(own, "hf-imagefolder", own / "exported")
    assert survey(open_tree(own, "txt", "tag", own / "exported")) == (5, True)
    assert survey(open_tree(own, "txt", "tag", tmp_path / "elsewhere")) == (9, True)


def test_command_lists_what_is_left_out_and_says_so_by_its_exit_code(root: Path, tmp_path: Path) -> None:
    arguments = (str(root), "--format", "kohya-json", "--to", "meta.json")
    first = run_command("export", *arguments, home=tmp_path)
    assert (first.returncode, first.stdout) == (1, "meta.json: 4 pictures, 1 left out\n")
    assert f"{root / 'sub' / 'without.jpg'}: it has no caption without.txt" in first.stderr
    second = run_command("export", *arguments, home=tmp_path)
    assert (second.returncode, "say --overwrite" in second.stderr) == (2, True)
    third = run_command("export", *arguments, "--overwrite", "--json", home=tmp_path)
    lines = [json.loads(line) for line in third.stdout.splitlines()]
    assert {"image": str(root / "a.jpg"), "name": str(root / "a.jpg")} in lines
    assert {"image": str(root / "sub" / "without.jpg"), "error": "it has no caption without.txt"} in lines
    missing = run_command("export", "nowhere", "--format", "csv", "--to", "a.csv", home=tmp_path)
    assert (missing.returncode, "there is no such folder" in missing.stderr) == (2, True)
