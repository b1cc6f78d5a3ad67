"""From answers to sidecars: is it still the picture that was asked about? Then they are noted and written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from florence_daemon.config_output import OutputConfig
from florence_daemon.engine.protocol import Answer, Done
from florence_daemon.errors import FolderBlocked, PoorAnswer, SidecarError, UnfitSidecar
from florence_daemon.folders import contents, exiftool, sidecars
from florence_daemon.folders.asking import answers_by_output, asks_of_one
from florence_daemon.folders.atomic import Directory
from florence_daemon.folders.ledger import Ledger
from florence_daemon.folders.needs import Makes
from florence_daemon.folders.records import PERSON, Written, digest_of
from florence_daemon.folders.settle import Stamp
from florence_daemon.folders.xmp import Words
from florence_daemon.folders.xmp_sidecar import embed
from florence_daemon.quality import flaw_of, reasons_against
from florence_daemon.queue import Image

Version = tuple[Stamp, bytes | None]
"""A picture's stamp, and the digest of its bytes where it is known."""
Pairs = Sequence[tuple[OutputConfig, Sequence[Answer]]]
"""Outputs, and the answers to what each of them asks."""


class PictureChanged(SidecarError):
    """The image on disk is not the one that was captioned; it is looked at again."""


@dataclass(frozen=True)
class Draft:
    """What a sidecar is to hold; None where that is there already. before: the bytes that it adds to, if it does.

    words: what the picture's own metadata are to say.
    """

    output: OutputConfig
    content: bytes | None
    before: bytes | None = None
    words: Words | None = None


class SidecarWriter:
    """Writes answers beside their images. Threads may share it."""

    def __init__(self, ledger: Ledger, makes: Makes) -> None:
        self._ledger = ledger
        self._makes = makes

    def write(self, image: Image, done: Done) -> bool:
        """Write an image's sidecars; False when all came to be there meanwhile, and stay.

        What is no caption is never written: the other sidecars are, and then the error is raised. So it is with a file
        to which nothing can be added.

        Raises: SidecarError; PictureChanged when the file is not the one asked about; PoorAnswer, UnfitSidecar.
        """
        pairs = answers_by_output(image.outputs, done.answers)
        fit = [(output, answers) for output, answers in pairs if not any(map(flaw_of, answers))]
        has_written = bool(fit) and self._write_fit(image, done, fit)
        if len(fit) < len(pairs):
            raise PoorAnswer(reasons_against(done))
        return has_written

    def _write_fit(self, image: Image, done: Done, pairs: Pairs) -> bool:
        """Write them together, or, when nothing is written since one of them cannot be, each for itself."""
        try:
            return self._write(image, done, pairs)
        except (UnfitSidecar, PoorAnswer):
            if len(pairs) == 1:
                raise
        refused: UnfitSidecar | PoorAnswer | None = None
        # Last what changes the picture itself, which would not be the one that was asked about any more.
        for pair in sorted(pairs, key=lambda pair: pair[0].embed):
            try:
                self._write(image, done, [pair])
            except (UnfitSidecar, PoorAnswer) as error:
                refused = refused or error
        if refused is not None:
            raise refused
        return True

    def _write(self, image: Image, done: Done, pairs: Pairs) -> bool:
        path, name = os.path.split(image.path)
        with _open(path, image.root) as directory:
            stamp = _same_picture(directory, name, image.stamp, done.content)
            drafts = self._drafts(directory, name, image, done, pairs)
            stamp, content = self._embed(directory, name, image, drafts, (stamp, done.content))
            noted = {draft.output: self._written(draft, stamp, content) for draft in drafts}
            adds = {each for each in noted if contents.reads_existing(each, each.rule(image.overwrite))}
            # Whether the text is in a file that is added to can be seen there; and a file that comes meanwhile, which
            # gets no text now, must not count as one that has it.
            self._ledger.writing(image.path, [noted[each] for each in noted if each not in adds])
            done_outputs = self._write_all(directory, name, image, drafts)
        said = {*done_outputs, *(draft.output for draft in drafts if draft.content is None)}
        if late := [noted[each] for each in noted if each in adds & said]:
            self._ledger.writing(image.path, late)
        self._ledger.written(image.path, [noted[each] for each in noted if each in said])
        return bool(done_outputs)

    def _write_all(self, directory: Directory, name: str, image: Image, drafts: list[Draft]) -> list[OutputConfig]:
        """Write what is not there yet; return the outputs that were written. Raises: SidecarError, PictureChanged."""
        ours = self._digests(image)
        before = {draft.output: draft.before for draft in drafts}
        found: set[OutputConfig] = set()

        def may_replace(sidecar: str, output: OutputConfig) -> bool:
            found.add(output)
            if (old := before[output]) is not None:
                return _still_holds(directory, sidecar, old)
            rule = output.rule(image.overwrite)
            if contents.reads_existing(output, rule):  # It came a moment ago, and is added to at the next look.
                return False
            return rule == "always" or (rule == "stale" and (output.ending, directory.digest_of(sidecar)) in ours)

        texts = [(draft.output, draft.content) for draft in drafts if draft.content is not None]
        done_outputs = sidecars.write_all(directory, name, texts, may_replace)
        if directory.stamp_of(name) is None:
            # It went away in these very milliseconds: what was new a moment ago belongs to nothing.
            for output in set(done_outputs) - found:
                directory.remove(sidecars.sidecar_path(name, output, directory.has))
            raise PictureChanged("went away while its sidecars were written; they were removed")
        return done_outputs

    def _drafts(self, directory: Directory, name: str, image: Image, done: Done, pairs: Pairs) -> list[Draft]:
        """What the sidecars of the picture `name` are to hold. Raises: SidecarError."""
        drafts = []
        for output, answers in pairs:
            rule, before = output.rule(image.overwrite), None
            if contents.reads_existing(output, rule):
                sidecar = sidecars.sidecar_path(name, output, directory.has)
                before = sidecars.read_existing(directory, sidecar, contents.most_bytes(output))
            results = tuple(answer.result for answer in answers)
            said = contents.Said(name, done.size_px, asks_of_one(output), results, self._makes(output).model)
            words = contents.words_of(output, said) if output.embed and exiftool.takes(name) else None
            drafts.append(Draft(output, contents.content_of(output, said, before, rule), before, words))
        return drafts

    def _embed(
        self, directory: Directory, name: str, image: Image, drafts: Sequence[Draft], picture: Version
    ) -> Version:
        """Put words into the picture itself; return what it is then. Raises: SidecarError, PictureChanged.

        The ledger hears of the new content before it is in its place: it is no new picture, and not captioned again.
        """

        def may_replace(stamp: Stamp, content: bytes) -> bool:
            nonlocal picture
            if directory.stamp_of(name) != picture[0]:
                raise PictureChanged("changed while words were put into it; nothing was written")
            entry = self._ledger.entry(image.path)
            told = [each for each in entry.written if _is_about(each, picture)] if entry is not None else []
            self._ledger.writing(image.path, [_now_about(each, stamp, content) for each in told])
            picture = stamp, content
            return True

        for draft in drafts:
            if draft.words is not None:
                change = partial(embed, words=draft.words, rule=draft.output.rule(image.overwrite))
                try:
                    directory.rewrite(name, change, may_replace)
                except OSError as error:
                    raise sidecars.error_of(image.path, error) from error
        return picture

    def _written(self, draft: Draft, stamp: Stamp, content: bytes | None) -> Written:
        output = draft.output
        digest = PERSON if draft.before is not None or draft.content is None else digest_of(draft.content)
        return Written(output.ending, digest, stamp.size_bytes, stamp.mtime_ns, content, self._makes(output))

    def _digests(self, image: Image) -> set[tuple[str, bytes | None]]:
        """The texts that this program wrote for the image; they alone may be replaced when they are stale."""
        is_asked = any(output.rule(image.overwrite) == "stale" for output in image.outputs)
        entry = self._ledger.entry(image.path) if is_asked else None
        return {(each.suffix, each.digest) for each in entry.written} if entry is not None else set()


def _is_about(written: Written, picture: Version) -> bool:
    """Tell whether a sidecar was written for this version of the picture."""
    stamp, content = picture
    same = (written.size_bytes, written.mtime_ns) == (stamp.size_bytes, stamp.mtime_ns)
    return same or (content is not None and written.content == content)


def _now_about(written: Written, stamp: Stamp, content: bytes) -> Written:
    return replace(written, size_bytes=stamp.size_bytes, mtime_ns=stamp.mtime_ns, content=content)


def _still_holds(directory: Directory, sidecar: str, before: bytes) -> bool:
    """Raises: SidecarError unless the file still holds what was added to: it is looked at again."""
    if directory.digest_of(sidecar) != digest_of(before):
        raise SidecarError(f"{sidecar} changed while something was added to it; nothing was written")
    return True


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
