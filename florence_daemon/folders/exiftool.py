"""Change the XMP inside a picture through exiftool, which is told no file's name: the picture goes through as a stream.

Names can hold anything, a newline or a leading dash too, and a name may lead elsewhere by the time it is opened.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, BinaryIO

PROGRAM = "exiftool"
INSTALL = "install it (Debian and Ubuntu: apt install libimage-exiftool-perl), or leave embed out"
# One picture takes a quarter of a second; a scan of hundreds of megabytes some.
LIMIT_S = 60.0
# What exiftool writes XMP into, of the formats that are captioned.
SUFFIXES = frozenset(
    f".{name}"
    for name in ("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "tif", "tiff", "avif", "heic", "heif")
)
# A JPEG holds 64 KB of XMP in one piece; what has more of it in others is left as it is.
SEVERAL_PIECES = b"HasExtendedXMP"
PACKET = "packet.xmp"
# More than any program writes; who makes pictures to harm can make it as large as the picture, and compressed larger.
MOST_BYTES = 16 * 2**20


class ExiftoolFailed(Exception):
    """Nothing was embedded; the message says why."""


def is_installed() -> bool:
    """Tell whether there is an exiftool."""
    return shutil.which(PROGRAM) is not None


def takes(name: str) -> bool:
    """Tell whether XMP can be put into a picture of this name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def read_packet(picture: BinaryIO) -> bytes | None:
    """The XMP that a picture holds, as it is; None when it holds none. Raises: ExiftoolFailed."""
    picture.seek(0)
    with tempfile.TemporaryFile() as found:
        _run(["-b", "-XMP", "-"], picture, found)
        size_bytes = found.seek(0, os.SEEK_END)
        if size_bytes > MOST_BYTES:
            raise ExiftoolFailed(f"its XMP has {size_bytes:,} bytes; more than {MOST_BYTES:,} are not read")
        found.seek(0)
        packet = found.read()
    if SEVERAL_PIECES in packet:
        raise ExiftoolFailed("its XMP is larger than 64 KB and in several pieces")
    return packet or None


def write_packet(picture: BinaryIO, packet: bytes, changed: BinaryIO) -> None:
    """Write the picture with this XMP in it to `changed`, everything else as it is. Raises: ExiftoolFailed."""
    picture.seek(0)
    with tempfile.TemporaryDirectory(prefix="florence-daemon-") as directory:
        Path(directory, PACKET).write_bytes(packet)
        _run([f"-XMP<={PACKET}", "-"], picture, changed, directory)
    if changed.seek(0, os.SEEK_END) == 0:
        raise ExiftoolFailed("exiftool wrote nothing")


def change_packet(picture: BinaryIO, changed: BinaryIO, change: Callable[[bytes | None], bytes]) -> bool:
    """Write the picture with its XMP changed to `changed`; False, and nothing, when the change makes no difference.

    Raises: ExiftoolFailed, and what `change` raises.
    """
    before = read_packet(picture)
    after = change(before)
    if after == before:
        return False
    write_packet(picture, after, changed)
    return True


def _run(arguments: Sequence[str], picture: BinaryIO, output: IO[bytes], directory: str | None = None) -> None:
    """Run exiftool on a picture, with no settings but these: an empty -config keeps a person's file for it out."""
    try:
        ran = subprocess.run(
            [PROGRAM, "-config", "", *arguments],
            stdin=picture,
            stdout=output,
            stderr=subprocess.PIPE,
            cwd=directory,
            timeout=LIMIT_S,
            check=False,
            start_new_session=True,  # Ctrl-C is for the daemon, which lets it finish
        )
    except FileNotFoundError:
        raise ExiftoolFailed(f"exiftool is not installed; {INSTALL}") from None
    except subprocess.TimeoutExpired:
        raise ExiftoolFailed(f"exiftool took longer than {LIMIT_S:g} s") from None
    except OSError as error:
        raise ExiftoolFailed(f"exiftool cannot be run: {error}") from None
    if ran.returncode != 0:
        said = ran.stderr.decode(errors="replace").strip().splitlines()
        raise ExiftoolFailed(f"exiftool refused: {said[-1] if said else f'exit code {ran.returncode}'}")
