"""Captions as a trainer reads them: the text of a sidecar, and what is wrong with its file."""

from __future__ import annotations

import codecs
import errno
import re
from dataclasses import dataclass

from florence_daemon.folders.atomic import open_regular

# A caption of more is no caption.
LIMIT_BYTES = 1 << 20
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Caption:
    """What a sidecar says. text: without a BOM and the blanks around it; line_count: lines that are not blank."""

    text: str
    has_bom: bool
    line_count: int


@dataclass(frozen=True)
class Unusable:
    """A sidecar that no trainer can use. kind: unreadable, empty or not-utf-8; reason: without the path."""

    kind: str
    reason: str


def read_caption(path: str) -> Caption | Unusable:
    """Read a sidecar; no link is followed, and only a regular file is read."""
    try:
        content = _read(path)
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or error
        return Unusable("unreadable", f"cannot be read: {reason}")
    except ValueError as error:
        return Unusable("unreadable", str(error))
    has_bom = content.startswith(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith(_UTF16):
            return Unusable("not-utf-8", "is UTF-16; save it as UTF-8")
        return Unusable("not-utf-8", f"is not UTF-8: byte {content[error.start]:#04x} at {error.start}")
    lines = re.split(r"\r\n|\r|\n", text.strip())
    if not text.strip():
        return Unusable("empty", "is empty")
    return Caption("\n".join(lines), has_bom, sum(1 for line in lines if line.strip()))


def tags_of(caption: Caption) -> str:
    """A sidecar's tags on one line, however they are parted there: by commas or by lines."""
    return ", ".join(tag for part in re.split(r"[,\n]", caption.text) if (tag := part.strip()))


def _read(path: str) -> bytes:
    """Raises: OSError, also when it is no regular file; ValueError when it is too large."""
    with open_regular(path) as file:
        content = file.read(LIMIT_BYTES + 1)
    if len(content) > LIMIT_BYTES:
        raise ValueError(f"is larger than {LIMIT_BYTES:,} bytes: this is no caption")
    return content
