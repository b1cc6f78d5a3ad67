"""Samples: the pictures below a folder with their captions, or why they have none that could be used."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from florence_daemon.config import FolderConfig
from florence_daemon.datasets.captions import Unusable, read_caption, tags_of
from florence_daemon.errors import PictureError
from florence_daemon.folders.names import is_image_name, is_utf8
from florence_daemon.folders.scan import Listing, list_directories
from florence_daemon.folders.sidecars import stem_of

if TYPE_CHECKING:
    from florence_daemon.engine.preprocess import Header


@dataclass(frozen=True)
class Sample:
    """A picture and what is said of it. path: as found; relative: from the folder on, with slashes on every system."""

    path: str
    relative: str
    caption: str
    tags: str
    header: Header


@dataclass(frozen=True)
class LeftOut:
    """A picture that no data set can hold, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Tree:
    """The pictures below a folder, and the endings of their sidecars.

    caption, tags: endings with their dot. leave_out: directories in it that are not looked into.
    on_unreadable: told of directories that cannot be.
    """

    folder: Path
    caption: str = ".txt"
    tags: str = ".tag"
    leave_out: Collection[str] = ()
    on_unreadable: Callable[[OSError], None] = field(default=lambda error: None)

    def listings(self) -> Iterator[Listing]:
        """What each directory holds; one at a time is in memory."""
        folder = FolderConfig(path=self.folder)
        return list_directories(folder, on_error=self.on_unreadable, leave_out=self.leave_out)

    def relative(self, path: str) -> str:
        """A path from the folder on, with slashes."""
        return os.path.relpath(path, self.folder).replace(os.sep, "/")

    def samples(self) -> Iterator[Sample | LeftOut]:
        """Every picture, in the order of the names."""
        for listing in self.listings():
            namesakes = namesakes_of(listing)
            for name in listing.images:
                yield self._sample(listing, name, namesakes[stem_of(name)])

    def _sample(self, listing: Listing, name: str, namesakes: list[str]) -> Sample | LeftOut:
        from florence_daemon.engine.preprocess import read_header

        path, stem = listing.path(name), os.path.splitext(name)[0]
        if len(namesakes) > 1:
            others = ", ".join(other for other in namesakes if other != name)
            return LeftOut(path, f"it shares {stem}{self.caption} with {others}; rename one of them")
        if not is_utf8(self.relative(path)):
            return LeftOut(path, "its name is not UTF-8, and cannot be written into a data set; rename it")
        if not listing.has(stem + self.caption):
            return LeftOut(path, f"it has no caption {stem}{self.caption}")
        caption = read_caption(listing.path(stem + self.caption))
        if isinstance(caption, Unusable):
            return LeftOut(path, f"its caption {stem}{self.caption} {caption.reason}")
        try:
            header = read_header(path)
        except PictureError as error:
            return LeftOut(path, str(error).removeprefix(path).strip(": "))
        return Sample(path, self.relative(path), caption.text, self._tags(listing, stem), header)

    def _tags(self, listing: Listing, stem: str) -> str:
        """Tags are an extra: a picture without them is none the worse."""
        found = read_caption(listing.path(stem + self.tags)) if listing.has(stem + self.tags) else None
        return "" if found is None or isinstance(found, Unusable) else tags_of(found)


def namesakes_of(listing: Listing) -> dict[str, list[str]]:
    """The pictures of a directory by what they must not have in common: of a.jpg and a.png, `a`."""
    stems: dict[str, list[str]] = defaultdict(list)
    for name in sorted(listing.names):
        if is_image_name(name):
            stems[stem_of(name)].append(name)
    return stems
