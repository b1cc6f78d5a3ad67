"""Sidecars: the files beside an image that hold what was said about it; their names, their text, their safe writing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from florence_daemon.config import IMAGE_SUFFIXES, OutputConfig
from florence_daemon.errors import SidecarError


def sidecar_path(image: str, output: OutputConfig) -> str:
    """The image's path with its last suffix replaced: `a.b.jpg` and txt give `a.b.txt`."""
    return os.path.splitext(image)[0] + output.suffix


def missing_outputs(image: str, outputs: Iterable[OutputConfig]) -> tuple[OutputConfig, ...]:
    """The outputs whose sidecar is not there yet. Whatever has the sidecar's name counts as there, a link too."""
    return tuple(output for output in outputs if not os.path.lexists(sidecar_path(image, output)))


def image_with_same_sidecar(image: str) -> str | None:
    """The image of this folder that the shared sidecar belongs to when `a.jpg` and `a.png` lie side by side.

    The first by name has it; None when `image` is that one, or stands alone.
    """
    directory, name = os.path.split(image)
    stem = os.path.splitext(name)[0]
    try:
        names = [
            entry
            for suffix_of_other in IMAGE_SUFFIXES
            for entry in (stem + suffix_of_other, stem + suffix_of_other.upper())
            if entry < name
            and os.path.isfile(os.path.join(directory, entry))
            and not _is_same_file(os.path.join(directory, entry), image)
        ]
    except OSError:
        return None
    return os.path.join(directory, min(names)) if names else None


def _is_same_file(one: str, other: str) -> bool:
    """On a file system that ignores case, `a.JPG` and `a.jpg` are one file."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def render(output: OutputConfig, result: str | dict[str, Any]) -> str:
    """Turn an answer into a sidecar's text: one non-empty line for words, a JSON object for boxes and polygons.

    Trainers read the first line only, so a MIXED prompt's lines are joined.
    Raises: SidecarError when there is nothing to write: an empty caption file stops a trainer.
    """
    text = json.dumps(result, ensure_ascii=False) if isinstance(result, dict) else _one_line(result)
    if not text:
        raise SidecarError(f"the model's answer to {output.prompt} was empty; nothing was written")
    return text + "\n"


def _one_line(text: str) -> str:
    joined = ""
    for line in (re.sub(r"\s+", " ", line).strip() for line in text.splitlines()):
        if line:
            separator = "" if not joined else " " if joined[-1] in ".,;:!?" else ", "
            joined += separator + line
    return joined


def write_all(image: str, texts: Sequence[tuple[OutputConfig, str]], *, overwrite: bool = False) -> list[str]:
    """Write an image's sidecars; return the paths that were written.

    Each appears whole or not at all. Unless `overwrite`, a file that is there already stays as it is, even one that
    appeared a moment ago.
    Raises: SidecarError, which names the path and the reason.
    """
    written = []
    for output, text in texts:
        path = sidecar_path(image, output)
        try:
            if write_atomically(path, text.encode("utf-8"), overwrite=overwrite):
                written.append(path)
        except OSError as error:
            raise SidecarError(f"{path}: cannot be written: {error.strerror or error}") from error
    return written


def write_atomically(path: str, content: bytes, *, overwrite: bool) -> bool:
    """Write `content` to a hidden file beside `path`, sync it, and move it into place; False when `path` existed.

    A crash at any moment leaves the old file or the new one, never part of one.
    """
    directory, name = os.path.split(path)
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    temporary = os.path.join(directory, f".florence-{digest}-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not _move(temporary, path, overwrite=overwrite):
            return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_directory(directory)
    return True


def _move(temporary: str, path: str, *, overwrite: bool) -> bool:
    """Move into place. Without `overwrite` a hard link does it: unlike a rename, it fails where a file exists."""
    if overwrite:
        os.replace(temporary, path)
        return True
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        # File systems without hard links (exFAT, some shares): the check is a moment older than the rename.
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
    return True


def _sync_directory(directory: str) -> None:
    """Make the new name itself durable; Windows has no such call."""
    if os.name == "nt":
        return
    handle = os.open(directory or ".", os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
