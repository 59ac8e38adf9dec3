"""Memories as rows of the store: written, read, counted."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from .records import STATUSES, Memory, Payload, digest_of, json_object, pack, unpack
from .vector_index import Ids, Vectors


@dataclass(frozen=True)
class Namespace:
    """One user's part of the store.

    Attributes:
        revision: changes with every change that is not an addition.
        last_id: of its newest memory, 0 where there is none.
    """

    number: int
    name: str
    encoder: str
    dimension: int
    revision: int
    last_id: int


class Row(NamedTuple):
    """A memory as it is stored, without its id and namespace."""

    status: str
    created_at: float
    expires_at: float | None
    modality: str
    layout: str
    source: str
    metadata: str
    embedding: bytes
    digest: bytes
    payload: bytes

    def is_intact(self, encoder: str) -> bool:
        """Whether the bytes are those that were stored."""
        parts = (self.modality, self.layout, self.payload, self.embedding, self.source, self.metadata)
        return self.digest == digest_of(encoder, *parts)


PAGE_ROWS = 256  # a payload may be large
COLUMNS = ", ".join(Row._fields)


NEWEST = "coalesce((SELECT max(id) FROM memories WHERE namespace = number), 0)"
NAMESPACE = f"SELECT number, name, encoder, dimension, revision, {NEWEST} FROM namespaces WHERE name = ?"
FOUND = (
    f"SELECT number, revision, {NEWEST}, m.id, {', '.join(f'm.{name}' for name in Row._fields)} FROM namespaces "
    "LEFT JOIN json_each(?1) AS j LEFT JOIN memories AS m ON m.id = j.value AND m.namespace = number "
    "AND (?2 IS NULL OR m.modality = ?2) WHERE name = ?3"
)  # LEFT: the namespace is told where none of the ids is there


def find_namespace(sql: sqlite3.Connection, name: str) -> Namespace | None:
    """The namespace of a name, if there is one."""
    row = sql.execute(NAMESPACE, (name,)).fetchone()
    return None if row is None else Namespace(*row)


def make_row(
    encoder: str,
    modality: str,
    payload: Payload,
    sample_rate_hz: int | None,
    embedding: np.ndarray,
    source: str,
    metadata: str,
    status: str,
    created_at: float,
    expires_at: float | None,
) -> Row:
    """A row with its digest; everything but the payload was checked before.

    Raises ValueError for a payload that is not of its modality.
    """
    data, layout = pack(modality, payload, sample_rate_hz)
    vector = embedding.astype("<f4").tobytes()
    digest = digest_of(encoder, modality, layout, data, vector, source, metadata)
    return Row(status, created_at, expires_at, modality, layout, source, metadata, vector, digest, data)


def insert_rows(sql: sqlite3.Connection, name: str, encoder: str, rows: Iterable[Row]) -> list[int]:
    """Insert rows into the namespace of a name, which is made if there is none.

    A row that is there already keeps its id and status and is renewed: the new expiry counts.

    Raises ValueError where the namespace holds embeddings of another encoder or width.
    """
    (before,) = sql.execute("SELECT coalesce(max(id), 0) FROM memories").fetchone()
    statement = (
        f"INSERT INTO memories (namespace, {COLUMNS}) VALUES (?{', ?' * len(Row._fields)}) "
        "ON CONFLICT (namespace, digest) DO UPDATE SET expires_at = excluded.expires_at RETURNING id"
    )
    place, ids = find_namespace(sql, name), []
    if place is not None:
        check_encoder(place, encoder)
    for row in rows:
        place = place or _make_namespace(sql, name, encoder, len(row.embedding) // 4)
        check_width(place, len(row.embedding) // 4)
        ids.append(sql.execute(statement, (place.number, *row)).fetchone()[0])
    if place is not None and any(row_id <= before for row_id in ids):
        bump(sql, place.number)
    return ids


def _make_namespace(sql: sqlite3.Connection, name: str, encoder: str, dimension: int) -> Namespace:
    values = (name, encoder, dimension)
    cursor = sql.execute("INSERT INTO namespaces (name, encoder, dimension) VALUES (?, ?, ?)", values)
    assert cursor.lastrowid is not None
    return Namespace(cursor.lastrowid, name, encoder, dimension, 0, 0)


def check_encoder(place: Namespace, encoder: str) -> None:
    """Raise ValueError where embeddings of another encoder meet those of a namespace."""
    if place.encoder != encoder:
        raise ValueError(f"embeddings of this namespace must come from the encoder {place.encoder!r}, got {encoder!r}")


def check_width(place: Namespace, width: int) -> None:
    """Raise ValueError where an embedding is wider or narrower than those of a namespace."""
    if place.dimension != width:
        raise ValueError(f"embeddings of this namespace must be {place.dimension} wide, got {width}")


def delete_rows(sql: sqlite3.Connection, place: Namespace, ids: Sequence[int] | None) -> int:
    """Delete rows of a namespace, or all of it with its name; their bytes are left to be scrubbed."""
    if ids is None:
        num_deleted = sql.execute("DELETE FROM memories WHERE namespace = ?", (place.number,)).rowcount
        sql.execute("DELETE FROM snapshots WHERE namespace = ?", (place.number,))
        sql.execute("DELETE FROM namespaces WHERE number = ?", (place.number,))
        mark_deletions(sql, num_deleted + 1)
        return num_deleted
    statement = "DELETE FROM memories WHERE namespace = ? AND id = ?"
    num_deleted = sql.executemany(statement, [(place.number, int(row_id)) for row_id in ids]).rowcount
    if num_deleted:
        bump(sql, place.number)
        mark_deletions(sql, num_deleted)
    return num_deleted


def count_rows(sql: sqlite3.Connection, name: str | None) -> dict[str, Any]:
    """Numbers of memories by status, of one namespace or of all."""
    counts: dict[str, Any] = dict.fromkeys(("memories", *STATUSES), 0)
    chosen = "WHERE namespace = (SELECT number FROM namespaces WHERE name = ?)" if name is not None else ""
    grouped = f"SELECT status, count(*) FROM memories {chosen} GROUP BY status"
    for status, count in sql.execute(grouped, () if name is None else (name,)):
        counts[status] = count
        counts["memories"] += count
    if name is None:
        counts["namespaces"] = sql.execute("SELECT count(*) FROM namespaces").fetchone()[0]
    return counts


def bump(sql: sqlite3.Connection, number: int) -> None:
    """Tell whoever holds an index that more has changed than additions."""
    sql.execute("UPDATE namespaces SET revision = revision + 1 WHERE number = ?", (number,))


def delete_expired(sql: sqlite3.Connection, now: float) -> int:
    """Delete what has expired, in every namespace; its bytes are left to be scrubbed. Gives the number of rows."""
    deleted = sql.execute("DELETE FROM memories WHERE expires_at <= ? RETURNING namespace", (now,)).fetchall()
    for (number,) in set(deleted):
        bump(sql, number)
    mark_deletions(sql, len(deleted))
    return len(deleted)


def mark_deletions(sql: sqlite3.Connection, num_deleted: int) -> None:
    """Note that bytes of deleted rows are still to be removed from the files."""
    sql.execute("UPDATE store SET deletions = deletions + ?", (num_deleted,))


def live_ids(sql: sqlite3.Connection, number: int, above: int, now: float) -> Ids:
    """Ids of what may be recalled, ascending."""
    found = sql.execute(
        "SELECT id FROM memories WHERE namespace = ? AND id > ? AND status = 'active' "
        "AND (expires_at IS NULL OR expires_at > ?) ORDER BY id",
        (number, above, now),
    )
    return np.fromiter((row[0] for row in found), np.int64)


def read_vectors(sql: sqlite3.Connection, namespace: Namespace, ids: Ids) -> tuple[Ids, Vectors]:
    """Which of the ids are still in the namespace, ascending, and their embeddings."""
    rows = sql.execute(
        "SELECT m.id, m.embedding FROM json_each(?) AS j CROSS JOIN memories AS m ON m.id = j.value "
        "WHERE m.namespace = ? AND length(m.embedding) = ?",
        (_json(ids), namespace.number, 4 * namespace.dimension),
    ).fetchall()
    vectors = np.frombuffer(b"".join(row[1] for row in rows), "<f4").reshape(len(rows), namespace.dimension)
    return np.fromiter((row[0] for row in rows), np.int64, len(rows)), vectors.astype(np.float32, copy=False)


def read_page(sql: sqlite3.Connection, number: int, last_id: int) -> list[tuple[int, Row]]:
    """The next rows of a namespace after an id."""
    return [
        (row[0], Row(*row[1:]))
        for row in sql.execute(
            f"SELECT id, {COLUMNS} FROM memories WHERE namespace = ? AND id > ? ORDER BY id LIMIT {PAGE_ROWS}",
            (number, last_id),
        )
    ]


def memory_of(row_id: int, row: Row, encoder: str, score: float | None = None) -> Memory:
    """A stored row as it is handed out.

    Raises ValueError where its bytes are not those that were stored.
    """
    if not row.is_intact(encoder):
        raise ValueError(f"memory {row_id} must have the digest {row.digest.hex()[:16]}..., got other bytes")
    payload, sample_rate_hz = unpack(row.modality, row.payload, row.layout)
    return Memory(
        id=row_id,
        modality=row.modality,
        payload=payload,
        embedding=np.frombuffer(row.embedding, "<f4").astype(np.float32),
        encoder=encoder,
        source=row.source,
        status=row.status,
        created_at=row.created_at,
        expires_at=row.expires_at,
        sample_rate_hz=sample_rate_hz,
        metadata=json_object(row.metadata),
        score=score,
    )


def _json(ids: Int64[np.ndarray, "count"] | Sequence[int]) -> str:
    return json.dumps([int(row_id) for row_id in ids])
