"""The forms of data sets that are described in one file: Hugging Face's imagefolder, kohya's JSON, CSV."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from florence_daemon.datasets.samples import Sample
from florence_daemon.datasets.targets import Placing, new_file, new_folder, place_picture
from florence_daemon.errors import SampleRefused

# Endings that Hugging Face's imagefolder takes for pictures, of those that this program knows (datasets 5.2).
IMAGEFOLDER_SUFFIXES = frozenset(
    (".apng", ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
)
METADATA = "metadata.jsonl"
# The card that `load_dataset` reads in a folder, and the Hub too: all of it is one split. Without it, sub-folders and
# pictures whose names hold one of these words are taken for splits of their own, and their captions are lost.
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: "**"
---
"""
_SPLIT_WORDS = "train|training|validation|valid|val|dev|test|testing|eval|evaluation"
_NAMES_SPLIT = re.compile(rf"(?:^|[-._ 0-9/])(?:{_SPLIT_WORDS})(?:[-._ 0-9/]|$)", re.IGNORECASE)


def names_split(relative: str) -> bool:
    """Tell whether `load_dataset("imagefolder", data_dir=…)`, which reads no card, takes a path for a split's."""
    return _NAMES_SPLIT.search(relative) is not None


class Format(Protocol):
    """A data set that is being written."""

    def add(self, sample: Sample) -> str:
        """Take one sample; return what it is called in the data set. Raises: SampleRefused, OSError."""


class ImageFolder:
    """`metadata.jsonl` beside the pictures, one object a line: `{"file_name": "sub/a.jpg", "text": "…"}`."""

    def __init__(self, metadata: IO[bytes], has_tags: bool, folder: Path | None, how: Placing) -> None:
        """folder: where the pictures go; None when they lie beside the metadata already."""
        self._metadata = metadata
        self._has_tags = has_tags
        self._folder = folder
        self._how = how

    def add(self, sample: Sample) -> str:
        """Place the picture and write its line; every line has the same columns."""
        suffix = os.path.splitext(sample.relative)[1].lower()
        if suffix not in IMAGEFOLDER_SUFFIXES:
            raise SampleRefused(f"Hugging Face's imagefolder does not read {suffix}")
        if self._folder is not None:
            place_picture(sample.path, self._folder / sample.relative, self._how)
        row = {"file_name": sample.relative, "text": sample.caption}
        if self._has_tags:
            row["tags"] = sample.tags
        self._metadata.write(_line(row))
        return sample.relative


class KohyaJson:
    """One object with the pictures as keys, as kohya's trainers read it with `--in_json`.

    `image_size` is that of the pixels as they are stored: kohya's trainers do not turn pictures by their EXIF
    orientation, and would squeeze a picture into the size that it has upright.
    """

    def __init__(self, file: IO[bytes], relative: bool) -> None:
        """relative: keys without ending, from the folder on, which the trainer then gets as `image_dir`."""
        self._file = file
        self._relative = relative
        self._is_first = True
        file.write(b"{")

    def add(self, sample: Sample) -> str:
        """Write one entry."""
        key = os.path.splitext(sample.relative)[0] if self._relative else os.path.abspath(sample.path)
        entry: dict[str, Any] = {"caption": sample.caption}
        if sample.tags:
            entry["tags"] = sample.tags
        entry["image_size"] = list(sample.header.decoded_px)
        text = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(entry, ensure_ascii=False)}"
        self._file.write((("\n  " if self._is_first else ",\n  ") + text).encode())
        self._is_first = False
        return key

    def close(self) -> None:
        """Write the end."""
        self._file.write(b"\n}\n")


class Table:
    """CSV with a head: file_name, text, tags if there are any, width and height of the upright picture."""

    def __init__(self, file: IO[bytes], has_tags: bool, relative: bool) -> None:
        self._file = file
        self._has_tags = has_tags
        self._relative = relative
        tags = ("tags",) if has_tags else ()
        self._write("file_name", "text", *tags, "width", "height")

    def add(self, sample: Sample) -> str:
        """Write one row."""
        name = sample.relative if self._relative else os.path.abspath(sample.path)
        tags = (sample.tags,) if self._has_tags else ()
        self._write(name, sample.caption, *tags, *sample.header.size_px)
        return name

    def _write(self, *fields: str | int) -> None:
        row = io.StringIO()
        csv.writer(row, lineterminator="\n").writerow(fields)
        self._file.write(row.getvalue().encode())


@contextmanager
def image_folder(source: Path, to: Path, has_tags: bool, how: Placing, overwrite: bool) -> Iterator[ImageFolder]:
    """A new folder with the pictures and their metadata; the metadata alone where `to` is their own folder."""
    if to.is_dir() and to.resolve() == source.resolve():
        with new_file(to / METADATA, overwrite) as metadata:
            yield ImageFolder(metadata, has_tags, None, how)
        return
    with new_folder(to) as folder, new_file(folder / METADATA) as metadata:
        (folder / "README.md").write_text(CARD, encoding="utf-8")
        yield ImageFolder(metadata, has_tags, folder, how)


@contextmanager
def kohya_json(to: Path, relative: bool, overwrite: bool) -> Iterator[KohyaJson]:
    """A new JSON file."""
    with new_file(to, overwrite) as file:
        entries = KohyaJson(file, relative)
        yield entries
        entries.close()


@contextmanager
def table(to: Path, has_tags: bool, relative: bool, overwrite: bool) -> Iterator[Table]:
    """A new CSV file."""
    with new_file(to, overwrite) as file:
        yield Table(file, has_tags, relative)


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()
