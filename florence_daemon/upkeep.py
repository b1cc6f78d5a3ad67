"""What a person can have done about images: try them again, forget them, look at their folders now."""

from __future__ import annotations

import os

from florence_daemon.errors import UnknownPath
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.watch import Watcher, is_inside
from florence_daemon.logs import printable


class Upkeep:
    """Acts on ledger and watcher; any thread may call. Paths are absolute."""

    def __init__(self, ledger: Ledger, watcher: Watcher) -> None:
        self._ledger = ledger
        self._watcher = watcher

    def retry(self, path: str | None) -> int:
        """Try again the failed images at or below `path`, or all; return how many. Raises: UnknownPath."""
        failed = self._failed(path)
        if path is not None and not failed:
            raise UnknownPath(f"{printable(path)}: no failed image is listed there; `florence-daemon status` lists all")
        for each in failed:
            self._ledger.settled(each)
            self._watcher.touch(each)
        return len(failed)

    def forget(self, path: str) -> int:
        """Drop what is noted of the image `path`, or of the images in that folder; return how many.

        What lies beside them counts as written by somebody else from then on. Raises: UnknownPath.
        """
        inside = {os.path.join(path, name) for name in self._ledger.known(path)}
        forgotten = sum(self._ledger.forget(each) for each in {path, *inside, *self._failed(path)})
        if not forgotten:
            raise UnknownPath(f"{printable(path)}: nothing is noted of it")
        return forgotten

    def rescan(self, path: str | None) -> int:
        """Look now at the watched folder that `path` is in, or all; return how many. Raises: UnknownPath."""
        scanned = self._watcher.rescan(path)
        if path is not None and not scanned:
            raise UnknownPath(f"{printable(path)}: no watched folder holds it; `florence-daemon status` lists them")
        return scanned

    def _failed(self, path: str | None) -> list[str]:
        failed = [each.path for each in self._ledger.failures()]
        # `/status` shows names in a printable form, so an odd one comes back as it was shown.
        return [each for each in failed if path is None or path in (each, printable(each)) or is_inside(each, path)]
