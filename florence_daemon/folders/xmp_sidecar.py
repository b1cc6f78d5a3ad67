"""XMP beside pictures and in them: does it hold our words, and what does it become; broken, it is left alone."""

from __future__ import annotations

from typing import BinaryIO

from florence_daemon.errors import UnfitSidecar
from florence_daemon.folders import exiftool
from florence_daemon.folders.atomic import open_regular
from florence_daemon.folders.xml_places import BadXml
from florence_daemon.folders.xmp import Words, is_ours, merge
from florence_daemon.folders.xmp_packet import MAX_BYTES


def has_words(path: str) -> bool:
    """Tell whether this program has said something in a file; of one that cannot be read it is not known."""
    try:
        with open_regular(path) as file:
            return is_ours(file.read(MAX_BYTES + 1))
    except (OSError, ValueError):  # When it is written, the error is told.
        return False


def merged(existing: bytes | None, words: Words, rule: str) -> bytes | None:
    """What a sidecar becomes; None where that is what it is. rule: always replaces a person's description.

    Raises: UnfitSidecar, and the file is to be left alone.
    """
    try:
        content = merge(existing, words, may_replace=rule == "always")
    except BadXml as error:
        raise UnfitSidecar(f"its XMP cannot be read, so nothing was merged into it, and it stays: {error}") from None
    return content if content != existing else None


def embed(picture: BinaryIO, changed: BinaryIO, words: Words, rule: str) -> bool:
    """Write the picture with the words merged into its own XMP to `changed`; False when they are in it already.

    Raises: UnfitSidecar.
    """
    try:
        return exiftool.change_packet(
            picture, changed, lambda packet: merge(packet, words, may_replace=rule == "always")
        )
    except (exiftool.ExiftoolFailed, BadXml) as error:
        raise UnfitSidecar(f"nothing was put into the picture itself, which stays as it is: {error}") from None
