"""The vector indexes of a store's namespaces: derived from it, held in memory, and kept as files that may be lost."""

import hashlib
import logging
import os
import sqlite3
import time
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock, RLock

import numpy as np

from ..quantization.parquet_writer import fsync_path
from .database import Database
from .rows import Namespace, live_ids, read_vectors
from .vector_index import Ids, VectorIndex, Vectors

logger = logging.getLogger(__name__)

FOLDER = "index"
MIN_UNSAVED_ROWS = 256  # fewer new rows are taken from the store sooner than from a file
UNSAVED_SHARE = 0.1
MAX_HELD_BYTES = 4 << 30


class HeldIndex:
    """An index in memory, and up to where in the store's history it goes."""

    def __init__(self, namespace: Namespace) -> None:
        self.lock = RLock()
        self.index: VectorIndex | None = None
        self.namespace = replace(namespace, revision=-1, last_id=0)  # as it was when the index was made
        self.num_writes = 0  # of this process by then
        self.unsaved_rows = 0  # changed since its file


class DerivedIndexes:
    """Finds the nearest rows of a namespace; brings its index up to date with the store first.

    An index is right when its set of ids is the store's: rows never change their embedding and ids are never used
    twice. A file is good when its SHA-256 is the one that the store recorded.

    Args:
        flat_rows: namespaces of more rows are searched by IVF-SQ8.
    """

    def __init__(self, database: Database, folder: Path, flat_rows: int):
        self.database, self.folder, self.flat_rows = database, folder / FOLDER, flat_rows
        self._held: OrderedDict[str, HeldIndex] = OrderedDict()
        self._lock = Lock()

    def last_seen(self, name: str, width: int) -> Namespace | None:
        """The namespace as it was when its index was made; None where it is another by now for all that is known."""
        held = self._held.get(name)
        if held is None or held.num_writes != self.database.num_writes or held.namespace.dimension != width:
            return None
        return held.namespace

    def nearest(self, namespace: Namespace, query: np.ndarray, k: int) -> list[int]:
        """Ids of the k nearest rows of the namespace; above `flat_rows` rows of more than k that are likely to be."""
        with self._lock:
            held = self._held.get(namespace.name)
            if held is None or held.namespace.number != namespace.number:
                held = self._held[namespace.name] = HeldIndex(namespace)
            self._held.move_to_end(namespace.name)
        with held.lock:
            found = self._up_to_date(held, namespace).search(query, k)
        self._let_go()
        return found

    def drop(self, name: str) -> None:
        """Forget what is held of a namespace."""
        with self._lock:
            self._held.pop(name, None)

    def remove_outdated(self, sql: sqlite3.Connection) -> None:
        """Remove the files that may hold deleted rows; within a write transaction."""
        sql.execute(
            "DELETE FROM snapshots WHERE revision != (SELECT revision FROM namespaces WHERE number = namespace)"
        )
        self._sweep(sql)

    def _sweep(self, sql: sqlite3.Connection) -> None:
        """Remove the files that the store does not name; within a write transaction, so that none is being made."""
        if self.folder.is_dir():
            known = {f"{row[0]}.faiss" for row in sql.execute("SELECT sha256 FROM snapshots")}
            for file in self.folder.iterdir():
                if file.name not in known:
                    file.unlink()
            fsync_path(self.folder)

    def describe(self, namespace: Namespace) -> dict[str, str | int]:
        """Kind and rows of the index in memory, bytes of the one on disk; zeros where there is none."""
        with self._lock:
            held = self._held.get(namespace.name)
        index = None if held is None else held.index
        with self.database.read() as sql:
            saved = sql.execute("SELECT num_bytes FROM snapshots WHERE namespace = ?", (namespace.number,)).fetchone()
        return {
            "index": "none" if index is None else index.kind,
            "index_rows": 0 if index is None else len(index.ids),
            "index_bytes_on_disk": 0 if saved is None else saved[0],
        }

    def _up_to_date(self, held: HeldIndex, namespace: Namespace) -> VectorIndex:
        num_writes = self.database.num_writes
        if held.index is not None and held.namespace == namespace:
            held.num_writes = num_writes  # what was written since was elsewhere
            return held.index
        if held.index is None:
            held.index, held.unsaved_rows = self._load(namespace), 0
        known = held.namespace
        with self.database.read() as sql:
            state = sql.execute("SELECT revision FROM namespaces WHERE number = ?", (namespace.number,)).fetchone()
            newest = sql.execute("SELECT max(id) FROM memories WHERE namespace = ?", (namespace.number,)).fetchone()
            now = replace(namespace, revision=-1 if state is None else state[0], last_id=newest[0] or 0)
            if held.index is not None and known == now:
                return held.index
            saved = sql.execute("SELECT 1 FROM snapshots WHERE namespace = ?", (namespace.number,)).fetchone()
            above = known.last_id if known.revision == now.revision else 0
            live = live_ids(sql, namespace.number, above, time.time())
        index = self._changed(held, namespace, live, above)
        held.index, held.namespace, held.num_writes = index, now, num_writes
        unsaved = held.unsaved_rows if saved else len(index.ids)
        if unsaved > max(MIN_UNSAVED_ROWS, UNSAVED_SHARE * len(index.ids)) and not self.database.read_only:
            self._save(held, index, namespace)
        return index

    def _changed(self, held: HeldIndex, namespace: Namespace, live: Ids, above: int) -> VectorIndex:
        """The index with exactly the ids `live` above `above`; built anew where that serves better."""
        index, read = held.index, partial(self._read, namespace)
        known = np.empty(0, np.int64) if index is None else index.ids
        recent = known[known > above]
        gone, new = np.setdiff1d(recent, live), np.setdiff1d(live, recent)
        held.unsaved_rows += len(gone) + len(new)
        if index is None or not index.fits(len(known) - len(gone) + len(new), self.flat_rows):
            wanted = np.union1d(np.setdiff1d(known, gone), new)
            held.unsaved_rows = len(wanted)
            return VectorIndex.build(wanted, read, namespace.dimension, self.flat_rows)
        index.remove(gone)
        index.add(new, read)
        return index

    def _read(self, namespace: Namespace, ids: Ids) -> tuple[Ids, Vectors]:
        with self.database.read() as sql:
            return read_vectors(sql, namespace, ids)

    def _load(self, namespace: Namespace) -> VectorIndex | None:
        """The index of the namespace's file; None where there is none or it is not the one that was written."""
        with self.database.read() as sql:
            saved = sql.execute("SELECT sha256, num_bytes FROM snapshots WHERE namespace = ?", (namespace.number,))
            row = saved.fetchone()
        if row is None:
            return None
        sha256, num_bytes = row
        try:
            with open(self.folder / f"{sha256}.faiss", "rb") as file:
                if os.fstat(file.fileno()).st_size != num_bytes:
                    raise ValueError(f"an index file must have {num_bytes} bytes, got another size")
                data = file.read(num_bytes)
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                raise ValueError(f"an index file must have the SHA-256 {sha256}, got {found}")
            index = VectorIndex.from_bytes(data)
            if index.dimension != namespace.dimension:
                raise ValueError(f"an index must have the width {namespace.dimension}, got {index.dimension}")
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: another version's FAISS file
            logger.warning("the index of a namespace is built anew: %s", error)
            return None
        return index

    def _save(self, held: HeldIndex, index: VectorIndex, namespace: Namespace) -> None:
        """Write the index beside the others and name it in the store; searches go on without it where that fails."""
        data = index.to_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            with self.database.write() as sql:
                found = sql.execute("SELECT revision FROM namespaces WHERE number = ?", (namespace.number,)).fetchone()
                if found != (held.namespace.revision,):
                    return  # it may hold what was forgotten meanwhile
                values = (namespace.number, sha256, held.namespace.revision, data.nbytes)
                sql.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)", values)
                self._sweep(sql)
                _write_file(self.folder / f"{sha256}.faiss", data)
        except OSError as error:
            logger.warning("an index could not be saved and will be built anew by the next process: %s", error)
            return
        held.unsaved_rows = 0

    def _let_go(self) -> None:
        """Let the indexes go that were not used for longest, down to MAX_HELD_BYTES; the last used one stays."""
        if len(self._held) == 1:
            return
        with self._lock:
            sizes = {name: 0 if held.index is None else held.index.num_bytes for name, held in self._held.items()}
            total = sum(sizes.values())
            while total > MAX_HELD_BYTES and len(self._held) > 1:
                name, _ = self._held.popitem(last=False)
                total -= sizes[name]


def _write_file(path: Path, data: memoryview) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    partial_path = path.with_suffix(".partial")
    with open(partial_path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial_path, path)
    fsync_path(path.parent)
