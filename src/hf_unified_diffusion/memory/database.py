"""The truth of a memory: one SQLite file, write-ahead logged and fully synced."""

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import NoReturn
from urllib.parse import quote

FILE_NAME = "memory.sqlite"
APPLICATION_ID = 0x48464D31
VERSION = 1
MIN_SQLITE = (3, 38, 0)  # json_each and RETURNING
SCHEMA = """
CREATE TABLE store (deletions INTEGER NOT NULL, scrubbed INTEGER NOT NULL) STRICT;
INSERT INTO store VALUES (0, 0);
CREATE TABLE namespaces (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    encoder TEXT NOT NULL,
    dimension INTEGER NOT NULL,
    revision INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE memories (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace INTEGER NOT NULL REFERENCES namespaces (number),
    status TEXT NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL,
    modality TEXT NOT NULL,
    layout TEXT NOT NULL,
    source TEXT NOT NULL,
    metadata TEXT NOT NULL,
    embedding BLOB NOT NULL,
    digest BLOB NOT NULL,
    payload BLOB NOT NULL,
    UNIQUE (namespace, digest)
) STRICT;
CREATE INDEX by_namespace ON memories (namespace, id);
CREATE INDEX by_expiry ON memories (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE snapshots (
    namespace INTEGER PRIMARY KEY REFERENCES namespaces (number),
    sha256 TEXT NOT NULL,
    revision INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL
) STRICT;
"""
# a forgotten row's bytes are overwritten; a schema in the file is data, not code
PRAGMAS = (
    "synchronous=FULL",
    "fullfsync=ON",
    "secure_delete=ON",
    "foreign_keys=ON",
    "cell_size_check=ON",
    "trusted_schema=OFF",
)
FAULTS = {
    sqlite3.SQLITE_FULL: (errno.ENOSPC, "the disk is full"),
    sqlite3.SQLITE_READONLY: (errno.EROFS, "the folder or its files are read-only (read_only=True reads them)"),
    sqlite3.SQLITE_CANTOPEN: (errno.EACCES, "its files cannot be opened or made (read_only=True makes none)"),
    sqlite3.SQLITE_PERM: (errno.EACCES, "access is refused"),
    sqlite3.SQLITE_IOERR: (errno.EIO, "the disk failed"),
    sqlite3.SQLITE_BUSY: (errno.EAGAIN, "another process held the lock for too long"),
    sqlite3.SQLITE_LOCKED: (errno.EAGAIN, "another connection held the lock for too long"),
}


class StorageError(OSError):
    """The disk, the folder or a lock stood in the way; what the call was to change is as it was before."""


class CorruptStorageError(StorageError):
    """The memory's own bytes are damaged: restore them from an export or a backup."""


def tell(error: sqlite3.DatabaseError, path: Path) -> NoReturn:
    """Raise SQLite's error as a `StorageError` with a cause and the path, where one of `FAULTS` is behind it."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        raise CorruptStorageError(errno.EIO, f"the memory is damaged ({error})", str(path)) from error
    if primary not in FAULTS:
        raise error
    number, cause = FAULTS[primary]
    raise StorageError(number, f"{cause} ({error}); nothing was changed", str(path)) from error


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into `StorageError`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        tell(error, path)


class Database:
    """One connection to the file: `read` and `write` are its transactions, each seen whole or not at all.

    Threads share it and take turns; processes each open their own.

    Args:
        folder: holds the file; made (for its owner alone) unless `read_only`.
        read_only: opens no file for writing; works in folders that cannot be written.
        timeout_s: how long to wait for another writer.

    Raises:
        ValueError: the folder holds something else, or a later version.
        StorageError: it cannot be opened.
    """

    def __init__(self, folder: Path, read_only: bool, timeout_s: float):
        if sqlite3.sqlite_version_info < MIN_SQLITE:
            raise ValueError(f"SQLite must be of version {MIN_SQLITE} or later, got {sqlite3.sqlite_version}")
        self.path, self.read_only, self.timeout_s = folder / FILE_NAME, read_only, timeout_s
        self._lock, self._process = RLock(), os.getpid()
        self._unlogged: tuple[int, int] | None = None  # time and size of a file opened without its log
        self.num_writes = 0  # transactions of this connection that may have changed something
        if read_only and not self.path.is_file():
            raise StorageError(errno.ENOENT, "there is no memory to read", str(self.path))
        if not read_only:
            _make_folder(folder)
        with storage_errors(self.path):
            self._connection = self._open_read_only() if read_only else self._connect("rwc")

    def _open_read_only(self) -> sqlite3.Connection:
        self._unlogged = None
        try:
            return self._connect("ro")
        except sqlite3.OperationalError as error:
            no_log_can_be_made = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
            if not no_log_can_be_made or self._log_bytes():
                raise
        # without a log the file alone is whole, for as long as nobody changes it
        self._unlogged = self._stamp()
        return self._connect("ro&immutable=1")

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = f"file:{quote(str(self.path.resolve()))}?mode={mode}"
        connection = sqlite3.connect(
            uri, uri=True, timeout=self.timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            for pragma in PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            if self._user_version(connection) == 0:
                self._create(connection)
                self._user_version(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _user_version(self, connection: sqlite3.Connection) -> int:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables and not version:
            return 0
        if application != APPLICATION_ID or version != VERSION:
            raise ValueError(f"{FILE_NAME} must be a memory of version {VERSION}, got {application:#x} {version}")
        return version

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA page_size=8192")
        deadline = time.monotonic() + self.timeout_s
        while True:  # the change of mode does not wait for other processes by itself
            try:
                (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
                break
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise StorageError(
                errno.ENOTSUP, f"the file system must allow a shared log, got mode {mode}", str(self.path)
            )
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self._user_version(connection) == 0:
                for statement in SCHEMA.strip().split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version={VERSION}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def look(self, statement: str, values: tuple[object, ...]) -> list[tuple]:
        """The rows of one statement, which sees one state of the memory by itself; several need `read`."""
        try:
            with self._lock:
                return self._current().execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            tell(error, self.path)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the memory."""
        with self._lock, storage_errors(self.path):
            self._current()
            with self._transaction("BEGIN") as connection:
                yield connection

    def _current(self) -> sqlite3.Connection:
        """The connection, opened anew where a file without a log has changed under it."""
        self._check_process()
        if self._unlogged is not None and (self._stamp() != self._unlogged or self._log_bytes()):
            self._connection.close()
            self._connection = self._open_read_only()
        return self._connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk when it ends, or has changed nothing."""
        if self.read_only:
            raise StorageError(errno.EROFS, "the memory was opened with read_only=True", str(self.path))
        with self._lock, storage_errors(self.path):
            self._check_process()
            self.num_writes += 1
            with self._transaction("BEGIN IMMEDIATE") as connection:
                yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        if connection.in_transaction:  # a part of a larger one
            yield connection
            return
        connection.execute(begin)
        try:
            yield connection
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def scrub(self, remove_files: Callable[[sqlite3.Connection], None]) -> None:
        """Remove the bytes of deleted rows from every file, unless nothing was deleted since the last time.

        SQLite overwrites deleted rows but leaves copies behind where rows had moved between pages: the file is
        written anew without them, and its log is emptied.

        Args:
            remove_files: called within a write transaction; removes other files that hold deleted rows.
        """
        with self.read() as sql:
            deletions, scrubbed = sql.execute("SELECT deletions, scrubbed FROM store").fetchone()
        if deletions == scrubbed:
            return
        try:
            with self.write() as sql:
                remove_files(sql)
            with self._lock, storage_errors(self.path):
                self._connection.execute("VACUUM")
                self._empty_log()
        except StorageError as error:
            cause = f"deleted memories are gone from every answer, but not yet from the disk ({error}): call purge()"
            raise StorageError(error.errno, cause, str(self.path)) from error
        with self.write() as sql:  # a deletion since then is still to be scrubbed
            sql.execute("UPDATE store SET scrubbed = max(scrubbed, ?)", (deletions,))

    def _empty_log(self) -> None:
        """Move the log into the file; waits for readers, and for another process that does the same."""
        deadline = time.monotonic() + self.timeout_s
        while True:  # where another process does it, SQLite does not wait by itself
            (busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return
            if time.monotonic() > deadline:
                raise StorageError(errno.EAGAIN, "a reader holds the log", str(self.path))
            time.sleep(0.01)

    def damage(self) -> list[str]:
        """What SQLite's check of the whole file finds; empty where all is well."""
        with self.read() as sql:
            found = [row[0] for row in sql.execute("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def num_bytes(self) -> int:
        """Bytes of the file and its log."""
        return self._stamp()[1] + self._log_bytes()

    def close(self) -> None:
        """Close the connection; the last one of a memory empties its log."""
        with self._lock:
            self._connection.close()

    def _stamp(self) -> tuple[int, int]:
        state = self.path.stat()
        return state.st_mtime_ns, state.st_size

    def _log_bytes(self) -> int:
        log = self.path.with_name(f"{FILE_NAME}-wal")
        return log.stat().st_size if log.exists() else 0

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ValueError(f"a memory must be used by the process that opened it, {self._process}, got {os.getpid()}")


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"path must be a folder, got the file {str(folder)!r}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(error.errno, f"the folder cannot be made ({error.strerror})", str(folder)) from error
