"""Rows of the ledger: what is known of an image, as SQLite keeps it and back."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from florence_daemon.folders.records import Entry, Failure, Written, digest_of, key_of
from florence_daemon.folders.settle import Stamp

# The columns that `entry_of` reads, in its order.
ENTRY = "reason, attempts, error, next_try_s, left_over, inode, size_bytes, mtime_ns, ctime_ns"


def insert_sidecar(connection: sqlite3.Connection, path: str, each: Written, now_s: float) -> None:
    """Note a sidecar of the image at `path`; another text of the same sidecar stays beside it."""
    making = (each.making.model, each.making.prompt, each.making.settings)
    number = number_of("\0".join(making).encode("utf-8", "surrogateescape"))
    connection.execute("INSERT OR IGNORE INTO makings VALUES (?, ?, ?, ?)", (number, *making))
    connection.execute(
        "INSERT OR REPLACE INTO sidecars VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*row_key(path), each.suffix, each.digest, each.size_bytes, each.mtime_ns, each.content, number, now_s),
    )


def entry_of(path: str, row: Sequence[Any], written: tuple[Written, ...] = ()) -> Entry:
    """What the columns of `ENTRY` say of the image at `path`."""
    reason, attempts, error, next_try_s, left_over, *columns = row
    stamp = None if columns[0] is None else Stamp(*columns)
    failure = None if reason is None else Failure(path, reason, attempts, stamp, error or "", next_try_s)
    return Entry(failure, left_over, written)


def row_key(path: str) -> tuple[int, bytes]:
    """Where an image's rows are: its directory's number, and its name."""
    directory, name = key_of(path)
    return number_of(directory), name


def number_of(content: bytes) -> int:
    """A number that stands for these bytes: shorter in every row than the bytes themselves."""
    return int.from_bytes(digest_of(content)[:8], "big", signed=True)


def columns_of(stamp: Stamp | None) -> tuple[int | None, ...]:
    """A stamp for SQLite."""
    return (None,) * 4 if stamp is None else (stamp.inode, stamp.size_bytes, stamp.mtime_ns, stamp.ctime_ns)
