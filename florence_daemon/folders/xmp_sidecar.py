"""XMP sidecars: which file is a picture's, what its answers say in it, and whether that is said already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from florence_daemon.errors import SidecarError
from florence_daemon.folders.xml_places import BadXml
from florence_daemon.folders.xmp import Words, is_ours, merge
from florence_daemon.tasks import split_prompt

SUFFIX = ".xmp"


def path_of(image: str, exists: Callable[[str], bool]) -> str:
    """Where a picture's XMP is: `a.jpg.xmp`, unless there is only an `a.xmp`, as Lightroom calls it."""
    beside, instead = image + SUFFIX, os.path.splitext(image)[0] + SUFFIX
    return instead if exists(instead) and not exists(beside) else beside


def words_of(texts: Iterable[tuple[str, str]], model: str) -> Words:
    """What a picture's metadata are to say. texts: prompts, and what was answered to each."""
    descriptions, keywords = [], []
    for prompt, text in texts:
        task, _ = split_prompt(prompt)
        if task.answer == "tags":
            keywords += [tag.strip() for tag in text.split(",")]
        else:
            descriptions.append(text.strip())
    return Words("\n".join(descriptions) or None, tuple(keywords), model)


def merged(path: str, existing: bytes | None, words: Words, *, may_replace: bool) -> bytes:
    """The file's new content. Raises: SidecarError, which names a file that cannot be read; it is left alone."""
    try:
        return merge(existing, words, may_replace=may_replace)
    except BadXml as error:
        raise _unreadable(path, error) from None


def has_ours(path: str, content: bytes) -> bool:
    """Tell whether this program has said something there. Raises: SidecarError."""
    try:
        return is_ours(content)
    except BadXml as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: BadXml) -> SidecarError:
    return SidecarError(f"{path}: this XMP cannot be read, so nothing is merged into it and it stays as it is: {error}")
