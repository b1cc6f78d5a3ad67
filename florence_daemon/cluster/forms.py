"""What a file of results may be: Parquet, JSON lines or a webdataset; made in memory."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The column that says which picture a row is about; `datasets.load_dataset` shows it first.
PATH = "image"
# What is said of every picture, and of a sample: no text may have such a name.
RESERVED = (PATH, "width", "height", "key")


@dataclass(frozen=True)
class Record:
    """What is said of a picture. texts: by the ending that its sidecar would have; structured: those that are JSON.

    content: the picture's bytes, where the results hold the pictures too.
    """

    path: str
    texts: Mapping[str, str]
    size_px: tuple[int, int]
    structured: frozenset[str] = frozenset()
    content: bytes | None = None

    def as_json(self) -> dict[str, Any]:
        """One object; what is JSON stays JSON."""
        texts = {name: json.loads(text) if name in self.structured else text for name, text in self.texts.items()}
        width, height = self.size_px
        return {PATH: self.path, **texts, "width": width, "height": height}


def _render_parquet(records: Sequence[Record], key: str) -> bytes:
    import pyarrow
    from pyarrow import parquet

    endings = list(dict.fromkeys(ending for record in records for ending in record.texts))
    columns = {
        PATH: pyarrow.array([record.path for record in records], pyarrow.string()),
        **{
            ending: pyarrow.array([record.texts.get(ending) for record in records], pyarrow.string())
            for ending in endings
        },
        "width": pyarrow.array([record.size_px[0] for record in records], pyarrow.int32()),
        "height": pyarrow.array([record.size_px[1] for record in records], pyarrow.int32()),
    }
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def _parquet_paths(file: Any) -> Iterator[str]:
    from pyarrow import parquet

    yield from parquet.read_table(file, columns=[PATH])[PATH].to_pylist()


def _render_jsonl(records: Sequence[Record], key: str) -> bytes:
    return "".join(f"{json.dumps(record.as_json(), ensure_ascii=False)}\n" for record in records).encode()


def _jsonl_paths(file: Any) -> Iterator[str]:
    # LF alone ends a line here; a name may hold what else counts as an end of a line.
    for line in filter(None, file.read().split(b"\n")):
        yield json.loads(line)[PATH]


def _render_webdataset(records: Sequence[Record], key: str) -> bytes:
    """A sample's picture, its texts and its description follow one another under one key."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, record in enumerate(records):
            sample = f"{key}{number:04}"
            _add(tar, sample + Path(record.path).suffix.lower(), record.content or b"")
            for ending, text in record.texts.items():
                if ending != "json":  # it is in the description, which has that name
                    _add(tar, f"{sample}.{ending}", text.encode())
            _add(tar, f"{sample}.json", json.dumps({"key": sample, **record.as_json()}, ensure_ascii=False).encode())
    return file.getvalue()


def _webdataset_paths(file: Any) -> Iterator[str]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            described = tar.extractfile(member) if member.name.endswith(".json") else None
            if described is not None:
                yield json.load(described)[PATH]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))


@dataclass(frozen=True)
class Form:
    """A form of results. ending: of its files. render: what a file holds; told a key that no other file has.

    paths: the pictures that a file is about. holds_pictures: their bytes are in it too.
    """

    ending: str
    render: Callable[[Sequence[Record], str], bytes]
    paths: Callable[[Any], Iterator[str]]
    holds_pictures: bool = False


FORMS = {
    "parquet": Form(".parquet", _render_parquet, _parquet_paths),
    "jsonl": Form(".jsonl", _render_jsonl, _jsonl_paths),
    "webdataset": Form(".tar", _render_webdataset, _webdataset_paths, holds_pictures=True),
}
