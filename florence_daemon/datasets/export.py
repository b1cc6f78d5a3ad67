"""Export: a folder's pictures and captions, one by one, into a data set of the wanted form."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from florence_daemon.datasets.formats import Format, image_folder, kohya_json, table
from florence_daemon.datasets.samples import LeftOut, Sample, Tree
from florence_daemon.datasets.shards import SHARD_SAMPLES, shards
from florence_daemon.datasets.targets import Placing
from florence_daemon.errors import DatasetError, SampleRefused, UsageError
from florence_daemon.folders.sidecars import FULL

FormatName = Literal["hf-imagefolder", "kohya-json", "csv", "webdataset"]
_FOLDERS = ("hf-imagefolder", "webdataset")


@dataclass(frozen=True)
class Wish:
    """What is wanted. to: a folder for hf-imagefolder and webdataset, a file for the others.

    placing: how hf-imagefolder gets the pictures. relative: names in kohya-json and csv count from the folder; None
    takes the form's habit. overwrite: a file that is there already may be replaced.
    """

    format: FormatName
    to: Path
    placing: Placing = "copy"
    relative: bool | None = None
    overwrite: bool = False
    shard_samples: int = SHARD_SAMPLES


@dataclass(frozen=True)
class Taken:
    """A picture that the data set has, and what it is called there."""

    path: str
    name: str


def survey(tree: Tree) -> tuple[int, bool]:
    """How many pictures there are, and whether any has tags; only names are looked at."""
    count, has_tags = 0, False
    for listing in tree.listings():
        count += len(listing.images)
        has_tags = has_tags or any(listing.has(Path(name).stem + tree.tags) for name in listing.images)
    return count, has_tags


def export(
    tree: Tree, wish: Wish, has_tags: bool, is_stopped: Callable[[], bool] = lambda: False
) -> Generator[Taken | LeftOut, None, None]:
    """Write the data set, and yield what becomes of each picture.

    It is there when this ends: whole, or not at all.
    Raises: UsageError, DatasetError; KeyboardInterrupt once `is_stopped`.
    """
    count = 0
    with _open(tree.folder, wish, has_tags) as written:
        for sample in tree.samples():
            if is_stopped():
                raise KeyboardInterrupt
            outcome = sample if isinstance(sample, LeftOut) else _add(written, sample)
            count += isinstance(outcome, Taken)
            yield outcome
        if not count:
            raise DatasetError(f"{tree.folder}: no picture has a caption {tree.caption}; nothing was written")


def _add(written: Format, sample: Sample) -> Taken | LeftOut:
    try:
        return Taken(sample.path, written.add(sample))
    except SampleRefused as error:
        return LeftOut(sample.path, str(error))
    except OSError as error:
        if error.errno in FULL:
            raise
        return LeftOut(sample.path, f"cannot be read or placed: {error.strerror or error}")


def _open(source: Path, wish: Wish, has_tags: bool) -> AbstractContextManager[Format]:
    """Raises: UsageError."""
    if wish.format not in _FOLDERS and wish.to.is_dir():
        raise UsageError(f"--to {wish.to}: this is a folder; {wish.format} is one file, so name a file in it")
    if wish.format == "hf-imagefolder":
        return image_folder(source, wish.to, has_tags, wish.placing, wish.overwrite)
    if wish.format == "kohya-json":
        return kohya_json(wish.to, bool(wish.relative), wish.overwrite)
    if wish.format == "csv":
        return table(wish.to, has_tags, wish.relative is not False, wish.overwrite)
    return shards(wish.to, wish.shard_samples)
