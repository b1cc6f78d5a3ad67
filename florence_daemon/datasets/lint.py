"""Lint: what a trainer would stumble over in a folder of pictures and captions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from florence_daemon.datasets.captions import Unusable, read_caption
from florence_daemon.datasets.samples import Tree, namesakes_of
from florence_daemon.datasets.tokens import LIMITS, Tokens
from florence_daemon.errors import PictureError
from florence_daemon.folders.names import HIDDEN
from florence_daemon.folders.scan import Listing
from florence_daemon.folders.sidecars import stem_of

# What can be found, in the order in which it is told, and what comes of it.
KINDS = {
    "missing": "pictures without a caption; some trainers stop, others train them with none",
    "empty": "captions that say nothing; kohya's trainers stop",
    "unreadable": "files that cannot be read",
    "not-utf-8": "captions that are not UTF-8; trainers stop, or read nonsense",
    "collision": "pictures that share a caption; both would be trained with the same one",
    "multi-line": "captions of several lines; kohya's trainers read the first alone, unless wildcards are on",
    "bom": "captions that begin with a byte order mark, which becomes part of the first word",
    **{
        f"over-{limit.tokens}-tokens": f"captions of more than {limit.tokens} {limit.encoder} tokens; {limit.meaning}"
        for limit in LIMITS
    },
    "sideways": "pictures that only EXIF turns upright; kohya's trainers see them lying, and captions tell otherwise",
    "format": "pictures of formats that kohya's trainers pass over",
    "orphan": "captions without a picture",
}
# What kohya's trainers look for; .avif and .jxl only where plugins are installed.
TRAINED_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Finding:
    """One thing to see to. kind: one of KINDS; detail: what there is to say besides, else empty."""

    kind: str
    path: str
    detail: str = ""


@dataclass
class Tally:
    """What was looked at."""

    pictures: int = 0
    captions: int = 0


class Lint:
    """Looks a tree over. max_tokens: captions up to this limit are not told of; one of those of LIMITS."""

    def __init__(self, tree: Tree, suffixes: Sequence[str], max_tokens: int = 0) -> None:
        """suffixes: the endings of the sidecars that a trainer would read, with their dots."""
        self._tree = tree
        self._suffixes = tuple(dict.fromkeys(suffixes))
        self._limits = [limit for limit in LIMITS if limit.tokens >= max_tokens]
        self._tokens = Tokens()
        self.tally = Tally()

    def findings(self) -> Iterator[Finding]:
        """Everything there is, a directory at a time."""
        for listing in self._tree.listings():
            namesakes = namesakes_of(listing)
            for name in listing.images:
                yield from self._of_picture(listing, name, namesakes[stem_of(name)])
            for suffix in self._suffixes:
                for name in sorted(listing.names):
                    if name.endswith(suffix) and not name.startswith(HIDDEN):
                        yield from self._of_sidecar(listing, name, name.removesuffix(suffix), namesakes)

    def _of_picture(self, listing: Listing, name: str, namesakes: list[str]) -> Iterator[Finding]:
        from florence_daemon.engine.preprocess import read_header

        self.tally.pictures += 1
        path, (stem, suffix) = listing.path(name), os.path.splitext(name)
        if namesakes[0] == name:
            if len(namesakes) > 1:
                yield Finding("collision", path, f"with {', '.join(namesakes[1:])}")
            lacking = [each for each in self._suffixes if not listing.has(stem + each)]
            if lacking:
                yield Finding("missing", path, f"no {', '.join(stem + each for each in lacking)}")
        if suffix.lower() not in TRAINED_SUFFIXES:
            yield Finding("format", path)
        try:
            header = read_header(path)
        except PictureError as error:
            yield Finding("unreadable", path, str(error).removeprefix(path).strip(": "))
            return
        if header.orientation != 1:
            yield Finding("sideways", path, f"EXIF orientation {header.orientation}")

    def _of_sidecar(self, listing: Listing, name: str, stem: str, namesakes: dict[str, list[str]]) -> Iterator[Finding]:
        path = listing.path(name)
        if os.path.normcase(stem) not in namesakes:
            is_double = os.path.splitext(stem)[0] in namesakes and stem in listing.names
            yield Finding("orphan", path, f"trainers look for {_single(name, stem)}" if is_double else "")
            return
        self.tally.captions += 1
        caption = read_caption(path)
        if isinstance(caption, Unusable):
            yield Finding(caption.kind, path, caption.reason)
            return
        if caption.has_bom:
            yield Finding("bom", path)
        if caption.line_count > 1:
            yield Finding("multi-line", path, f"{caption.line_count} lines")
        yield from self._of_length(path, caption.text)

    def _of_length(self, path: str, text: str) -> Iterator[Finding]:
        """Only the largest limit that it is over is told of."""
        counts = self._tokens.counts(text)
        for limit in reversed(self._limits):
            count = counts[limit.encoder]
            if count > limit.tokens:
                about = "about " if limit.encoder == "T5" else ""
                yield Finding(f"over-{limit.tokens}-tokens", path, f"{about}{count} {limit.encoder} tokens")
                return


def _single(name: str, stem: str) -> str:
    """`a.jpg.txt` beside a.jpg should be `a.txt`."""
    return os.path.splitext(stem)[0] + name.removeprefix(stem)
