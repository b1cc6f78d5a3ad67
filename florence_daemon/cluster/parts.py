"""Results in a place of their own: a file for each batch, as Parquet, JSON lines or a webdataset."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_daemon.cluster.addresses import Store, is_address, open_store
from florence_daemon.errors import DatasetError

# The column that says which picture a row is about; `datasets.load_dataset` shows it first.
PATH = "image"


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


class Parts:
    """The files of results at one place, which together are the result. No picture is in two of them."""

    def __init__(self, store: Store, form: str) -> None:
        """form: one of FORMS."""
        self._store = store
        self._form = form
        self._ending, self._render, self._paths = FORMS[form]

    @property
    def address(self) -> str:
        """Where they are, as people call it."""
        return self._store.address(self._store.path)

    @property
    def holds_pictures(self) -> bool:
        """Whether the pictures' bytes are in them too."""
        return self._form == "webdataset"

    def prepare(self) -> None:
        """Make the place. Raises: DatasetError when it cannot be written, or holds results of another form."""
        try:
            self._store.make_directory()
            names = self._store.list(self._store.path)[0].names
        except OSError as error:
            raise DatasetError(f"{self.address}: cannot be written: {' '.join(str(error).split())}") from error
        others = tuple(ending for ending, _, _ in FORMS.values() if ending != self._ending)
        other = next((name for name in sorted(names) if name.startswith("part-") and name.endswith(others)), None)
        if other is not None:
            raise DatasetError(f"{self.address}: {other} is of another format; give another place, or that --format")

    def done(self) -> frozenset[str]:
        """The pictures that are in some part. Raises: DatasetError for one that cannot be read."""
        names = self._store.list(self._store.path)[0].names
        parts = sorted(name for name in names if name.startswith("part-") and name.endswith(self._ending))
        return frozenset(path for name in parts for path in self._read(name))

    def held(self, paths: Collection[str]) -> frozenset[str]:
        """Those of a batch's pictures that are in its file, where that is there."""
        name = self._name(paths)
        is_there = self._store.look(self._place(name)).type.name == "File"
        return frozenset(self._read(name)) if is_there else frozenset()

    def write(self, paths: Collection[str], records: Sequence[Record]) -> None:
        """Write the file of a batch whose pictures these are. Raises: OSError."""
        name = self._name(paths)
        self._store.write(self._place(name), self._render(records, name.partition(".")[0].removeprefix("part-")))

    def _name(self, paths: Collection[str]) -> str:
        digest = hashlib.sha256("\n".join(sorted(paths)).encode("utf-8", "surrogateescape"))
        return f"part-{digest.hexdigest()[:16]}{self._ending}"

    def _place(self, name: str) -> str:
        return f"{self._store.path}/{name}"

    def _read(self, name: str) -> list[str]:
        try:
            with self._store.files.open_input_file(self._place(name)) as file:
                return list(self._paths(file))
        except (OSError, ValueError, tarfile.TarError, KeyError) as error:
            raise DatasetError(
                f"{self._store.address(self._place(name))}: cannot be read as {self._form}: {error}; "
                f"remove it, and its pictures are captioned again"
            ) from error


def open_parts(place: str, form: str) -> Parts:
    """The place that a person names: an address, or a folder that every machine sees. Raises: PictureError."""
    store = open_store(place if is_address(place) else Path(place).absolute().as_uri())
    return Parts(store if is_address(place) else Store(store.files, store.path, ""), form)


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
    for line in file.read().decode().splitlines():
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


FORMS: dict[str, tuple[str, Callable[[Sequence[Record], str], bytes], Callable[[Any], Iterator[str]]]] = {
    "parquet": (".parquet", _render_parquet, _parquet_paths),
    "jsonl": (".jsonl", _render_jsonl, _jsonl_paths),
    "webdataset": (".tar", _render_webdataset, _webdataset_paths),
}
