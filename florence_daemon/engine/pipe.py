"""Messages over the pipe between the daemon and the engine process."""

from __future__ import annotations

import pickle
import struct
from typing import IO, Any


def write_message(stream: IO[bytes], message: Any) -> None:
    """Write one message: its length in 8 bytes, then its pickle. Both ends are this program."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<Q", len(body)) + body)
    stream.flush()


def read_message(stream: IO[bytes]) -> Any:
    """Read one message. Raises: EOFError when the other end is gone."""
    header = stream.read(8)
    if len(header) < 8:
        raise EOFError
    (length,) = struct.unpack("<Q", header)
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    return pickle.loads(body)  # noqa: S301 - written by our own child or parent
