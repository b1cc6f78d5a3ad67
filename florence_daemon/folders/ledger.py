"""The ledger: what was claimed, written and refused for each image. It is never worth more than the files themselves.

An image is claimed before the engine gets it, and ended only after its sidecars are on disk; a process that dies in
between leaves its claim, which the next one takes up.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from florence_daemon.folders.ledger_file import LedgerFile
from florence_daemon.folders.ledger_rows import ENTRY, columns_of, entry_of, insert_sidecar, number_of, row_key
from florence_daemon.folders.records import (
    FIRST_ASIDE_S,
    LONGEST_RETRY_S,
    MAX_LEFT,
    Entry,
    Failure,
    Making,
    Written,
    key_of,
    retry_after_s,
)
from florence_daemon.folders.settle import Stamp

T = TypeVar("T")

SET_ASIDE = "EngineCrashed"
# Written out as the index has it, else SQLite does not use it.
TROUBLED = "(reason IS NOT NULL OR left_over > 0 OR holder IS NOT NULL)"
SAME_STAMP = """(images.inode IS excluded.inode AND images.size_bytes IS excluded.size_bytes
    AND images.mtime_ns IS excluded.mtime_ns AND images.ctime_ns IS excluded.ctime_ns)"""
# Of the images that got their sidecars last, no more are looked through for those of the watched folders.
LATEST_ROWS = 5000
CLEAN = "holder = NULL, has_begun = 0, left_over = 0, attempts = 0, reason = NULL, error = NULL, next_try_s = NULL"


class Ledger:
    """What is known of each image, shared by threads and by processes. `health`: why it is only in memory, or None."""

    def __init__(self, directory: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """directory: where its file lives; None keeps it in memory. clock: seconds since the epoch."""
        self._clock = clock
        self._ended: list[tuple[str, tuple[Written, ...]]] = []
        self._lock = threading.Lock()
        self._file = LedgerFile(directory, self._take_up)

    @property
    def health(self) -> str | None:
        """None, or why nothing that is noted now outlives this process."""
        return self._file.health

    def now_s(self) -> float:
        """The ledger's clock, in seconds since the epoch."""
        return self._clock()

    def claim(self, images: Sequence[tuple[str, Stamp | None]]) -> None:
        """Note that these are about to be captioned, before they are."""
        rows = [(*row_key(path), *columns_of(stamp), self._file.holder, self._clock()) for path, stamp in images]

        def work(connection: sqlite3.Connection) -> None:
            self._name_directories(connection, (path for path, _ in images))
            connection.executemany(
                f"""INSERT INTO images (directory, name, inode, size_bytes, mtime_ns, ctime_ns, holder, claimed_s)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                    left_over = CASE WHEN {SAME_STAMP} THEN left_over ELSE 0 END,
                    attempts = CASE WHEN {SAME_STAMP} THEN attempts ELSE 0 END,
                    reason = CASE WHEN {SAME_STAMP} THEN reason END,
                    inode = excluded.inode, size_bytes = excluded.size_bytes,
                    mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns,
                    holder = excluded.holder, has_begun = 0, claimed_s = excluded.claimed_s""",
                rows,
            )

        self._commit(work)

    def begun(self, path: str) -> None:
        """Note that the engine is at a claimed image: if this process dies now, the image is suspect.

        Not synced: it is worth a death of the process, not a millisecond of each image.
        """
        statement = "UPDATE images SET has_begun = 1 WHERE directory = ? AND name = ?"
        self._file.write(lambda connection: connection.execute(statement, row_key(path)), is_synced=False)

    def release(self, path: str) -> None:
        """Give a claim back: it was not the image's fault that it was not captioned."""
        self._update(path, "holder = NULL, has_begun = 0")

    def writing(self, path: str, written: Iterable[Written]) -> None:
        """Note what is about to be written, so that it is known as this program's own whatever happens next.

        The image need not be claimed: what a server elsewhere captions is not.
        """
        sidecars = tuple(written)

        def work(connection: sqlite3.Connection) -> None:
            self._name_directories(connection, (path,))
            connection.execute("INSERT OR IGNORE INTO images (directory, name) VALUES (?, ?)", row_key(path))
            for each in sidecars:
                insert_sidecar(connection, path, each, self._clock())

        self._commit(work)

    def written(self, path: str, written: Iterable[Written]) -> None:
        """Note that an image's sidecars are on disk. It is committed with the next claim, or by `flush`."""
        with self._lock:
            self._ended.append((path, tuple(written)))

    def flush(self) -> None:
        """Commit what `written` noted."""
        if self._ended:
            self._commit(lambda connection: None)

    def failed(
        self, path: str, reason: str, stamp: Stamp | None, attempts: int = 1, *, error: str = "", heals: bool = False
    ) -> float | None:
        """Note a failure; attempts add up while the file stays as it is.

        heals: trying again may help, so it is tried again later and later. Returns the seconds until then, else None.
        """

        def work(connection: sqlite3.Connection) -> float | None:
            self._name_directories(connection, (path,))
            connection.execute(
                f"""INSERT INTO images (directory, name, inode, size_bytes, mtime_ns, ctime_ns, attempts)
                VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                    attempts = excluded.attempts + CASE WHEN {SAME_STAMP} THEN attempts ELSE 0 END,
                    inode = excluded.inode, size_bytes = excluded.size_bytes,
                    mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns""",
                (*row_key(path), *columns_of(stamp), attempts),
            )
            query = "SELECT attempts FROM images WHERE directory = ? AND name = ?"
            (total,) = connection.execute(query, row_key(path)).fetchone()
            wait_s = retry_after_s(total) if heals else None
            next_try_s = None if wait_s is None else self._clock() + wait_s
            connection.execute(
                """UPDATE images SET reason = ?, error = ?, next_try_s = ?, holder = NULL, has_begun = 0,
                    left_over = 0, ended_s = ? WHERE directory = ? AND name = ?""",
                (reason, error, next_try_s, self._clock(), *row_key(path)),
            )
            return wait_s

        return self._commit(work)

    def settled(self, path: str) -> None:
        """Forget that an image failed or was being worked on: it has its sidecars, or is gone, or is tried anew."""
        self._update(
            path, "holder = NULL, has_begun = 0, left_over = 0, attempts = 0, reason = NULL, next_try_s = NULL"
        )

    def forget(self, path: str) -> bool:
        """Drop all that is known of an image, as if it had never been seen; False when nothing was."""

        def work(connection: sqlite3.Connection) -> bool:
            connection.execute("DELETE FROM sidecars WHERE directory = ? AND name = ?", row_key(path))
            return connection.execute("DELETE FROM images WHERE directory = ? AND name = ?", row_key(path)).rowcount > 0

        return self._commit(work)

    def forget_missing(self, directory: str, names: Container[str]) -> None:
        """Drop what is known of those images of a directory that are not among the names in it.

        Where none of them is there, it may be an empty mount point: then nothing is dropped.
        """
        number = number_of(os.fsencode(os.path.abspath(directory)))
        query = "SELECT name FROM images WHERE directory = ?"
        known = self._file.read(lambda connection: connection.execute(query, (number,)).fetchall())
        gone = [(number, name) for (name,) in known if os.fsdecode(name) not in names]
        if not gone or len(gone) == len(known):
            return

        def work(connection: sqlite3.Connection) -> None:
            for table in ("sidecars", "images"):
                connection.executemany(f"DELETE FROM {table} WHERE directory = ? AND name = ?", gone)

        self._commit(work)

    def entry(self, path: str) -> Entry | None:
        """What is known of one image."""
        directory, name = key_of(path)
        return self._entries(os.fsdecode(directory), name).get(os.fsdecode(name))

    def known(self, directory: str) -> dict[str, Entry]:
        """What is known of the images of one directory, by name."""
        return self._entries(directory, None)

    def troubled(self, directory: str) -> dict[str, Entry]:
        """Those of `known` that failed, or that are or were left while being worked on, without their sidecars."""

        def work(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            query = f"SELECT name, {ENTRY} FROM images WHERE directory = ? AND {TROUBLED}"
            return connection.execute(query, (number_of(os.fsencode(os.path.abspath(directory))),)).fetchall()

        self.flush()
        return {
            os.fsdecode(row[0]): entry_of(os.path.join(directory, os.fsdecode(row[0])), row[1:])
            for row in self._file.read(work)
        }

    def failures(self) -> list[Failure]:
        """Every failure, by path."""

        def work(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            query = f"""SELECT path, name, {ENTRY} FROM images JOIN directories ON id = directory
                WHERE {TROUBLED} AND reason IS NOT NULL"""
            return connection.execute(query).fetchall()

        self.flush()
        found = (entry_of(os.fsdecode(os.path.join(row[0], row[1])), row[2:]).failure for row in self._file.read(work))
        return sorted((failure for failure in found if failure is not None), key=lambda failure: failure.path)

    def latest(self, is_wanted: Callable[[str], bool], count: int) -> list[tuple[str, float]]:
        """The images that got their sidecars last, newest first, and when: seconds since the epoch.

        is_wanted: which paths count.
        """

        def work(connection: sqlite3.Connection) -> list[tuple[str, float]]:
            rows = connection.execute(
                """SELECT path, name, ended_s FROM images INDEXED BY latest JOIN directories ON id = directory
                WHERE reason IS NULL AND ended_s IS NOT NULL AND EXISTS (SELECT 1 FROM sidecars
                    WHERE sidecars.directory = images.directory AND sidecars.name = images.name)
                ORDER BY ended_s DESC LIMIT ?""",
                (LATEST_ROWS,),
            )
            paths = ((os.fsdecode(os.path.join(directory, name)), ended_s) for directory, name, ended_s in rows)
            return list(itertools.islice((each for each in paths if is_wanted(each[0])), count))

        self.flush()
        return self._file.read(work)

    def edited(self, path: str, written: Written) -> None:
        """Note that a person wrote a sidecar: none of its texts is this program's own. written: with the digest PERSON.

        The picture and the making in it are those as of which the text counts as good.
        """

        def work(connection: sqlite3.Connection) -> None:
            self._name_directories(connection, (path,))
            connection.execute("INSERT OR IGNORE INTO images (directory, name) VALUES (?, ?)", row_key(path))
            statement = "DELETE FROM sidecars WHERE directory = ? AND name = ? AND suffix = ?"
            connection.execute(statement, (*row_key(path), written.suffix))
            insert_sidecar(connection, path, written, self._clock())

        self._commit(work)

    def close(self) -> None:
        """Commit what is left and close the file."""
        self.flush()
        self._file.close()

    def _entries(self, directory: str, name: bytes | None) -> dict[str, Entry]:
        number = number_of(os.fsencode(os.path.abspath(directory)))
        only, values = ("", (number,)) if name is None else (" AND name = ?", (number, name))

        def work(
            connection: sqlite3.Connection,
        ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], dict[int, Making]]:
            return (
                connection.execute(f"SELECT name, {ENTRY} FROM images WHERE directory = ?{only}", values).fetchall(),
                connection.execute(
                    f"""SELECT name, suffix, digest, size_bytes, mtime_ns, content, making
                    FROM sidecars WHERE directory = ?{only} ORDER BY written_s""",
                    values,
                ).fetchall(),
                {row[0]: Making(*row[1:]) for row in connection.execute("SELECT * FROM makings")},
            )

        self.flush()
        images, sidecars, makings = self._file.read(work)
        written: dict[bytes, list[Written]] = {}
        for image, suffix, digest, size_bytes, mtime_ns, content, making in sidecars:
            each = Written(suffix, digest, size_bytes, mtime_ns, content, makings[making])
            written.setdefault(image, []).append(each)
        return {
            os.fsdecode(row[0]): entry_of(
                os.path.join(directory, os.fsdecode(row[0])), row[1:], tuple(written.get(row[0], ()))
            )
            for row in images
        }

    def _update(self, path: str, changes: str) -> None:
        """Change what is noted of one image, if anything is."""
        statement = f"UPDATE images SET {changes} WHERE directory = ? AND name = ? AND {TROUBLED}"
        self._commit(lambda connection: connection.execute(statement, row_key(path)))

    def _commit(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run changes together with what `written` noted; that is forgotten only once it is on disk."""

        def both(connection: sqlite3.Connection) -> T:
            self._write_ended(connection)
            return work(connection)

        with self._lock:
            result = self._file.write(both)
            self._ended.clear()
            return result

    def _write_ended(self, connection: sqlite3.Connection) -> None:
        for path, sidecars in self._ended:
            key = row_key(path)
            for each in sidecars:
                connection.execute(
                    "DELETE FROM sidecars WHERE directory = ? AND name = ? AND suffix = ? AND digest != ?",
                    (*key, each.suffix, each.digest),
                )
            connection.execute(
                f"UPDATE images SET {CLEAN}, ended_s = ? WHERE directory = ? AND name = ?",
                (self._clock(), *key),
            )

    def _name_directories(self, connection: sqlite3.Connection, paths: Iterable[str]) -> None:
        directories = {key_of(path)[0] for path in paths}
        rows = [(number_of(directory), directory) for directory in directories]
        connection.executemany("INSERT OR IGNORE INTO directories VALUES (?, ?)", rows)

    def _take_up(self, connection: sqlite3.Connection, living: set[str]) -> None:
        """Free the claims that dead processes left; pictures that the engine was at then are set aside at the third."""
        connection.execute("CREATE TEMP TABLE IF NOT EXISTS living (holder TEXT)")
        connection.execute("DELETE FROM living")
        connection.executemany("INSERT INTO living VALUES (?)", [(name,) for name in living])
        dead = f"{TROUBLED} AND holder IS NOT NULL AND holder NOT IN (SELECT holder FROM living)"
        connection.execute(
            f"""UPDATE images SET error = '{SET_ASIDE}', attempts = left_over + 1,
                reason = 'the daemon ended ' || (left_over + 1) || ' times while it worked on this picture',
                next_try_s = ? + min(?, ? * (1 << min(left_over + 1 - {MAX_LEFT}, 20)))
            WHERE {dead} AND has_begun AND left_over + 1 >= {MAX_LEFT}""",
            (self._clock(), LONGEST_RETRY_S, FIRST_ASIDE_S),
        )
        connection.execute(
            f"UPDATE images SET left_over = left_over + has_begun, has_begun = 0, holder = NULL WHERE {dead}"
        )
