"""The ledger's file: opened, migrated, set aside when damaged, stood in for by memory. The only user of sqlite3."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from florence_daemon.folders.holder import Holder, living_holders

log = logging.getLogger(__name__)
T = TypeVar("T")

NAME = "ledger.sqlite3"
# Another process's transaction is over within milliseconds; a disk that hangs may take longer.
BUSY_S = 10.0
BUSY_STEP_S = 0.02
# While the file cannot be had, it is tried again this often.
RETRY_S = 60.0

# One step after the other, never changed once released: a file remembers how many it has seen.
MIGRATIONS = (
    (
        "CREATE TABLE directories (id INTEGER PRIMARY KEY, path BLOB NOT NULL)",
        """CREATE TABLE makings (
            id INTEGER PRIMARY KEY, model TEXT NOT NULL, prompt TEXT NOT NULL, settings TEXT NOT NULL
        )""",
        # left_over: how often a process died while the engine was at this picture, in a row.
        """CREATE TABLE images (
            directory INTEGER NOT NULL, name BLOB NOT NULL,
            inode INTEGER, size_bytes INTEGER, mtime_ns INTEGER, ctime_ns INTEGER,
            holder TEXT, has_begun INTEGER NOT NULL DEFAULT 0, left_over INTEGER NOT NULL DEFAULT 0,
            attempts INTEGER NOT NULL DEFAULT 0, reason TEXT, error TEXT, next_try_s REAL,
            claimed_s REAL, ended_s REAL,
            PRIMARY KEY (directory, name)
        ) WITHOUT ROWID""",
        """CREATE INDEX troubled ON images (directory, name)
            WHERE reason IS NOT NULL OR left_over > 0 OR holder IS NOT NULL""",
        # Two rows for one sidecar, an old and a new digest, exist only while it is being written.
        """CREATE TABLE sidecars (
            directory INTEGER NOT NULL, name BLOB NOT NULL, suffix TEXT NOT NULL, digest BLOB NOT NULL,
            size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, content BLOB, making INTEGER NOT NULL,
            written_s REAL NOT NULL,
            PRIMARY KEY (directory, name, suffix, digest)
        ) WITHOUT ROWID""",
    ),
    # What the page shows first: it is asked for every few seconds, of ledgers with a million images.
    ("CREATE INDEX latest ON images (ended_s) WHERE reason IS NULL AND ended_s IS NOT NULL",),
)
TABLES = ("directories", "makings", "images", "sidecars")


class _Damaged(Exception):
    """The file is there, but it is not a ledger that can be used."""


class LedgerFile:
    """A database that is always there: the file, or memory while there is no file to be had. Threads may share it.

    health: None, or why it is only in memory.
    """

    def __init__(self, directory: Path | None, on_open: Callable[[sqlite3.Connection, set[str]], None]) -> None:
        """directory: None is memory alone. on_open: told of each opened file, and of the processes that live."""
        self.health: str | None = None
        self._directory = directory
        self._on_open = on_open
        self._lock = threading.RLock()
        self._holder: Holder | None = None
        self._identity: tuple[int, int] | None = None
        self._retry_s = 0.0
        self._connection = _connect(":memory:")
        if directory is not None:
            with self._lock:
                self._open_file()

    @property
    def holder(self) -> str:
        """The name of this process."""
        return self._holder.name if self._holder is not None else "memory"

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run queries."""
        with self._lock:
            if self.health is not None:
                self._look_after()
            return self._run(work)

    def write(self, work: Callable[[sqlite3.Connection], T], *, is_synced: bool = True) -> T:
        """Run changes as one transaction; when it returns, they outlive a power cut.

        is_synced: False outlives the death of the process only, and is far cheaper.
        """

        def transact(connection: sqlite3.Connection) -> T:
            connection.execute(f"PRAGMA synchronous = {'FULL' if is_synced else 'NORMAL'}")
            with _transaction(connection):
                return work(connection)

        with self._lock:
            self._look_after()
            return self._run(transact)

    def close(self) -> None:
        """Close the file and let go of what this process holds."""
        with self._lock:
            self._connection.close()
            if self._holder is not None:
                self._holder.close()

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do it; when the file fails, put another or memory in its place and do it there."""
        for _ in range(2):
            try:
                return work(self._connection)
            except sqlite3.OperationalError as error:
                self._go_on_in_memory(error)
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:
                    raise
                self._begin_anew(error)
        return work(self._connection)

    def _begin_anew(self, error: sqlite3.DatabaseError) -> None:
        self._connection.close()  # Windows renames no file that is open.
        try:
            self._set_aside(error)
        except OSError as refused:
            self._go_on_in_memory(refused)
        else:
            self._open_file()

    def _look_after(self) -> None:
        """Open the file anew when it was taken away or replaced, and when it is time to try again."""
        if self._directory is None:
            return
        if self.health is not None:
            if time.monotonic() >= self._retry_s:
                self._open_file()
        elif _identity(self._directory / NAME) != self._identity:
            log.warning("%s: was removed or replaced; a new one is begun", self._directory / NAME)
            self._open_file()

    def _open_file(self) -> None:
        """Open the file, bring it up to date, and take over what memory held meanwhile."""
        if self._directory is None:
            return
        try:
            os.makedirs(self._directory, exist_ok=True)
            living = self._hold(self._directory)
            connection = self._open_or_begin_anew()
        except (OSError, sqlite3.Error) as error:
            self._go_on_in_memory(error)
            return
        try:
            if self.health is not None:
                _copy(self._connection, connection)
                log.warning("%s: can be written again", self._directory / NAME)
            self._on_open(connection, living)
        except sqlite3.Error as error:
            connection.close()
            self._go_on_in_memory(error)
            return
        self._connection.close()
        self._connection, self.health = connection, None

    def _hold(self, directory: Path) -> set[str]:
        """Let others see that this process lives; return all that do. Raises: OSError."""
        if self._holder is not None and not self._holder.is_there():
            self._holder.close()
            self._holder = None
        if self._holder is None:
            self._holder = Holder(directory)
        return living_holders(directory) | {self._holder.name}

    def _open_or_begin_anew(self) -> sqlite3.Connection:
        path = self._path
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            self._set_aside(PermissionError("this user may not read and write it"))
        for _ in range(2):
            try:
                connection = _connect(str(path))
            except (_Damaged, sqlite3.DatabaseError) as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._set_aside(error)
                continue
            self._identity = _identity(path)
            return connection
        return _connect(str(path))

    @property
    def _path(self) -> Path:
        assert self._directory is not None  # noqa: S101 - for the type checker: memory has no path
        return self._directory / NAME

    def _set_aside(self, error: Exception) -> None:
        """Rename a file that cannot be used, unless another process has done so already."""
        path = self._path
        if self._identity is not None and _identity(path) != self._identity:
            return
        aside = f"{path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}{suffix}", f"{aside}{suffix}")
        log.error(
            "%s: cannot be used (%s); it is set aside as %s and begun anew from the files themselves",
            path,
            error,
            aside,
        )

    def _go_on_in_memory(self, error: Exception) -> None:
        """Nothing is lost but what only the ledger knew: attempts, and which sidecars are this program's own."""
        if self._directory is None:
            raise error
        self._retry_s = time.monotonic() + RETRY_S
        if self.health is None:
            self.health = f"the ledger {self._path} cannot be used ({error}); it is kept in memory"
            log.error("%s, and tried again every %g s", self.health, RETRY_S)
            self._connection.close()
            self._connection = _connect(":memory:")


def _connect(path: str) -> sqlite3.Connection:
    """Open a database, look it over and bring it up to date. Raises: _Damaged, sqlite3.Error."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        _log_ahead(connection)
        connection.execute("PRAGMA synchronous = FULL")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _Damaged(verdict)
        with _transaction(connection):
            _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Have changes go into a log first (WAL). Raises: sqlite3.Error.

    Where another process is about to write a file that has no log yet, SQLite says so and does not wait.
    """
    until_s = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until_s:
                raise
            time.sleep(BUSY_STEP_S)


def _migrate(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise _Damaged(f"it was written by a newer version of this program, which knows {version} migrations")
    for migration in MIGRATIONS[version:]:
        for statement in migration:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _copy(memory: sqlite3.Connection, file: sqlite3.Connection) -> None:
    """Lay what memory held over what the file holds."""
    with _transaction(file):
        for table in TABLES:
            rows = memory.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - a name of ours
            if rows:
                places = ", ".join("?" * len(rows[0]))
                file.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", rows)  # noqa: S608


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)
