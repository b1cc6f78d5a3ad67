"""An intake for tests of watching: it notes what it is given."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from florence_daemon.config import FolderConfig
from florence_daemon.folders.health import OK, Health
from florence_daemon.folders.scan import Listing
from florence_daemon.folders.settle import Stamp


class Notes:
    """Takes every image once. waiting_now: how many it says are waiting still; None says all that it took."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.refused: set[str] = set()
        self.waiting_now = 0
        self.times_asked = 0
        self.folders_left: list[FolderConfig] = []

    def waiting(self, folder: FolderConfig) -> int:
        self.times_asked += 1
        return self.waiting_now

    def lacking(self, folder: FolderConfig, listing: Listing) -> Iterator[str]:
        return (name for name in listing.images if listing.path(name) not in self.refused)

    def scanned(self, folder: FolderConfig) -> None:
        pass

    def needs(self, folder: FolderConfig, path: str) -> bool:
        return path not in self.refused

    def submit(self, folder: FolderConfig, ready: Iterable[tuple[str, Stamp]]) -> None:
        for path, _ in ready:
            self.paths.append(path)
            self.refused.add(path)

    def look_at_settings(self, folder: FolderConfig, directory: str | None = None) -> bool:
        return False

    def renewed(self, folder: FolderConfig) -> list[str]:
        return []

    def health(self, folder: FolderConfig) -> Health:
        return OK

    def left(self, folder: FolderConfig) -> None:
        self.folders_left.append(folder)

    def names(self, root: object) -> list[str]:
        return [os.path.relpath(path, str(root)) for path in self.paths]
