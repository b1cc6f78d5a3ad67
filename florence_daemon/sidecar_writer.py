"""From answers to sidecars: is it still the picture that was asked about? Then they are noted and written."""

from __future__ import annotations

import os

from florence_daemon.config import OutputConfig
from florence_daemon.engine.protocol import Done
from florence_daemon.errors import FolderBlocked, SidecarError
from florence_daemon.folders import sidecars
from florence_daemon.folders.atomic import Directory
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.needs import Makes
from florence_daemon.folders.records import Written, digest_of
from florence_daemon.folders.settle import Stamp
from florence_daemon.queue import Image


class PictureChanged(SidecarError):
    """The image on disk is not the one that was captioned; it is looked at again."""


class SidecarWriter:
    """Writes answers beside their images. Threads may share it."""

    def __init__(self, ledger: Ledger, makes: Makes) -> None:
        self._ledger = ledger
        self._makes = makes

    def write(self, image: Image, done: Done) -> bool:
        """Write an image's sidecars; False when all came to be there meanwhile, and stay.

        Raises: SidecarError; PictureChanged when the file is not the one asked about.
        """
        answers = zip(image.outputs, done.answers, strict=True)
        texts = [(output, sidecars.render(output, answer.result)) for output, answer in answers]
        path, name = os.path.split(image.path)
        with _open(path, image.root) as directory:
            stamp = _same_picture(directory, name, image.stamp, done.content)
            written = {output: self._written(output, text, stamp, done.content) for output, text in texts}
            ours = self._digests(image)
            self._ledger.writing(image.path, written.values())

            found: set[OutputConfig] = set()

            def may_replace(sidecar: str, output: OutputConfig) -> bool:
                found.add(output)
                if image.overwrite == "stale":
                    return (output.suffix, directory.digest_of(sidecar)) in ours
                return image.overwrite == "always"

            done_outputs = sidecars.write_all(directory, name, texts, may_replace)
            if directory.stamp_of(name) is None:
                # It went away in these very milliseconds: what was new a moment ago belongs to nothing.
                for output in set(done_outputs) - found:
                    directory.remove(sidecars.sidecar_path(name, output))
                raise PictureChanged("went away while its sidecars were written; they were removed")
        self._ledger.written(image.path, [written[output] for output in done_outputs])
        return bool(done_outputs)

    def _written(self, output: OutputConfig, text: str, stamp: Stamp, content: bytes | None) -> Written:
        digest = digest_of(text.encode("utf-8"))
        return Written(output.suffix, digest, stamp.size_bytes, stamp.mtime_ns, content, self._makes(output))

    def _digests(self, image: Image) -> set[tuple[str, bytes | None]]:
        """The texts that this program wrote for the image; they alone may be replaced when they are stale."""
        entry = self._ledger.entry(image.path) if image.overwrite == "stale" else None
        return {(each.suffix, each.digest) for each in entry.written} if entry is not None else set()


def _open(path: str, root: str | None) -> Directory:
    """Raises: PictureChanged, FolderBlocked."""
    try:
        return Directory(path, root)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PictureChanged("its folder went away while it was captioned; nothing was written") from error
    except OSError as error:
        raise FolderBlocked(f"{path}: cannot be opened: {error.strerror}") from error


def _same_picture(directory: Directory, name: str, stamp: Stamp | None, content: bytes | None) -> Stamp:
    """The file's stamp. Raises: PictureChanged unless the file is as it was, or was touched and holds the same."""
    now = directory.stamp_of(name)
    if now is None:
        raise PictureChanged("went away while it was captioned; nothing was written")
    is_same = stamp in (None, now) or (content is not None and directory.digest_of(name) == content)
    if not is_same or now != directory.stamp_of(name):
        raise PictureChanged("changed while it was captioned; nothing was written")
    return now
