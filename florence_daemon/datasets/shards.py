"""webdataset: tar shards in which a sample's picture, caption and description follow one another under one key."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from florence_daemon.datasets.samples import Sample
from florence_daemon.datasets.targets import new_folder
from florence_daemon.folders.atomic import open_regular

# img2dataset's habit: shards of 10,000 samples, keys of nine digits of which the first five are the shard's.
SHARD_SAMPLES = 10_000
# Shards are read as streams, so smaller ones only cost files.
SHARD_BYTES = 1_000_000_000
_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "HEIF": "heic"}


class Shards:
    """`00000.tar`, `00001.tar`, … in a folder, each of at most so many samples and about so many bytes."""

    def __init__(self, folder: Path, shard_samples: int = SHARD_SAMPLES, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._most_samples = shard_samples
        self._most_bytes = shard_bytes
        self._tar: tarfile.TarFile | None = None
        self._shard = 0
        self._samples = 0

    def add(self, sample: Sample) -> str:
        """Write one sample; a picture that cannot be read leaves no half of it. Raises: OSError."""
        with open_regular(sample.path) as file:
            picture = file.read()
        tar = self._shard_for(len(picture))
        key = f"{self._shard:05}{self._samples:04}"
        self._samples += 1
        ending = _ENDINGS.get(sample.header.format, sample.header.format.lower())
        _add(tar, f"{key}.{ending}", picture)
        _add(tar, f"{key}.txt", sample.caption.encode())
        _add(tar, f"{key}.json", json.dumps(_described(key, sample), ensure_ascii=False).encode())
        return f"{self._shard:05}.tar: {key}"

    def close(self) -> None:
        """Write the last shard's end."""
        if self._tar is not None:
            self._tar.close()
        self._tar = None

    def _shard_for(self, size_bytes: int) -> tarfile.TarFile:
        """The shard that has room for a picture of this size, the open one or the next."""
        if self._tar is not None and (
            self._samples >= self._most_samples or self._tar.offset + size_bytes > self._most_bytes
        ):
            self.close()
            self._shard += 1
            self._samples = 0
        if self._tar is None:
            path = self._folder / f"{self._shard:05}.tar"
            self._tar = tarfile.open(path, "x", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - `close` closes it
        return self._tar


@contextmanager
def shards(to: Path, shard_samples: int = SHARD_SAMPLES, shard_bytes: int = SHARD_BYTES) -> Iterator[Shards]:
    """A new folder of shards."""
    with new_folder(to) as folder:
        written = Shards(folder, shard_samples, shard_bytes)
        try:
            yield written
        finally:
            written.close()


def _described(key: str, sample: Sample) -> dict[str, Any]:
    width, height = sample.header.size_px
    tags = {"tags": sample.tags} if sample.tags else {}
    return {
        "key": key,
        "file_name": sample.relative,
        "caption": sample.caption,
        **tags,
        "width": width,
        "height": height,
    }


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """The same content gives the same archive, whoever makes it and when."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))
