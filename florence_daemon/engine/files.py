"""The files of a checkpoint directory, all untrusted: reads its JSON, and says which files hold its weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence_daemon.errors import CheckpointError

_TEXT_LIMIT_BYTES = 256 * 1024 * 1024
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
# What Git leaves behind where its large-file extension is not installed: the right name, and 130 bytes of text.
_LFS_POINTER = b"version https://git-lfs"

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
_WEIGHTS = (SAFETENSORS, SAFETENSORS + ".index.json", PICKLED, PICKLED + ".index.json")


def read_text(path: Path) -> str:
    """Read a UTF-8 text file of a checkpoint.

    Raises:
        CheckpointError: it is missing, too large, or not UTF-8.
    """
    try:
        if path.stat().st_size > _TEXT_LIMIT_BYTES:
            raise CheckpointError(f"{path} is larger than {_TEXT_LIMIT_BYTES} bytes, which no such file needs")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it is missing, not JSON, or not an object.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {_kind(value)} where an object is expected")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """Read a JSON object, or an empty one where there is no such file."""
    return read_json(path) if path.exists() else {}


def find_weights(directory: Path) -> list[Path]:
    """List the files that hold the weights: one, or the shards its index names; safetensors before pickles.

    Raises:
        CheckpointError: there are none, a shard is missing, or an index points out of the directory.
    """
    first = next((directory / name for name in _WEIGHTS if (directory / name).is_file()), None)
    if first is None:
        raise CheckpointError(f"{directory} holds no weights: none of {', '.join(_WEIGHTS)} is there")
    files = _shards(first) if first.suffix == ".json" else [first]
    for file in files:
        _check_weights_file(file)
    return files


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map that says which tensor is in which file")
    names = {name if isinstance(name, str) else repr(name) for name in weight_map.values()}
    ending = ".safetensors" if index.name.startswith(SAFETENSORS) else ".bin"
    for name in names:
        if not _FILE_NAME.fullmatch(name) or not name.endswith(ending):
            raise CheckpointError(f"{index} names {name!r}, which is not a *{ending} file beside it")
    return [index.parent / name for name in sorted(names)]


def _check_weights_file(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            beginning = opened.read(len(_LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    if beginning == _LFS_POINTER:
        raise CheckpointError(f"{file} is only a Git LFS pointer: run `git lfs pull` there, or download it again")


class Fields:
    """A JSON object whose fields are read with their type and range checked, and named in the error.

    Worked example: `Fields(path, config, "text_config").whole("d_model", 1, 65536)`.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.prefix = prefix
        self._values = values

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        value = self._values.get(name)
        return default if value is None else value

    def refuse(self, name: str, wanted: str) -> CheckpointError:
        where = f"{self.prefix}.{name}" if self.prefix else name
        value = json.dumps(self._values.get(name), default=repr)
        shown = value if len(value) <= 200 else value[:200] + "…"
        return CheckpointError(f"{self.path}: {where} is {shown}, which should be {wanted}")

    def within(self, name: str) -> Fields:
        """Descend into an object, empty where it is absent."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.refuse(name, "an object")
        return Fields(self.path, value, f"{self.prefix}.{name}" if self.prefix else name)

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.refuse(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        value = self.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.refuse(name, f"a number from {low} to {high}")
        if not low <= value <= high:
            raise self.refuse(name, f"a number from {low} to {high}")
        return float(value)

    def truth(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return value

    def wholes(self, name: str, low: int, high: int, default: list[int] | None = None) -> list[int]:
        value = self.get(name, default)
        good = isinstance(value, list) and 1 <= len(value) <= 8
        if not good or not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            raise self.refuse(name, f"a list of whole numbers from {low} to {high}")
        if not all(low <= item <= high for item in value):
            raise self.refuse(name, f"a list of whole numbers from {low} to {high}")
        return list(value)


def _kind(value: object) -> str:
    return {"list": "a list", "str": "a string", "NoneType": "null"}.get(type(value).__name__, "a number")
