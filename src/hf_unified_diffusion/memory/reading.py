"""Memories out of the store: page by page, or the best of what an index found."""

import errno
import json
import time
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32

from .database import CorruptStorageError, Database
from .records import Memory, check_name
from .rows import FOUND, Namespace, Row, find_namespace, memory_of, read_page


def pages(database: Database, namespace: str) -> Iterator[tuple[Namespace, list[tuple[int, Row]]]]:
    """All that has not expired, by id, some rows at a time; no transaction stays open between them."""
    check_name("namespace", namespace)
    last_id = 0
    while True:
        with database.read() as sql:
            place = find_namespace(sql, namespace)
            page = [] if place is None else read_page(sql, place.number, last_id)
        if place is None or not page:
            return
        yield place, [(row_id, row) for row_id, row in page if not _expired(row)]
        last_id = page[-1][0]


def intact_rows(database: Database, namespace: str) -> Iterator[list[tuple[Row, str]]]:
    """All rows with their encoder; raises CorruptStorageError at one that is damaged."""
    for place, page in pages(database, namespace):
        for row_id, row in page:
            checked_memory(database, row_id, row, place.encoder)
        yield [(row, place.encoder) for _, row in page]


def find_rows(
    database: Database, namespace: str, ids: Sequence[int], modality: str | None = None
) -> tuple[tuple[int, int, int] | None, list[tuple[int, Row]]]:
    """Number, revision and newest id of a namespace (None: there is none), and its rows of those ids in their order.

    One statement gives both, so that the rows are of that very state. With a modality only its rows are read: what
    else there is may be large.
    """
    found = database.look(FOUND, (json.dumps(ids), modality, namespace))
    rows = [(row[3], Row._make(row[4:])) for row in found if row[3] is not None]
    return (found[0][:3] if found else None), rows


def best_of(
    database: Database, place: Namespace, rows: list[tuple[int, Row]], query: Float32[np.ndarray, "width"], k: int
) -> tuple[list[Memory], int]:
    """Of these rows, the k best that the store lets be recalled, by their exact scores; and how many it lets."""
    live = [(row_id, row) for row_id, row in rows if row.status == "active" and not _expired(row)]
    keys = np.frombuffer(b"".join([row.embedding for _, row in live]), "<f4").reshape(-1, place.dimension)
    scores = (keys @ query).tolist()
    order = sorted(range(len(live)), key=scores.__getitem__, reverse=True)[:k]
    return [checked_memory(database, *live[i], place.encoder, scores[i]) for i in order], len(live)


def checked_memory(database: Database, row_id: int, row: Row, encoder: str, score: float | None = None) -> Memory:
    """A row as it is handed out; raises CorruptStorageError where its bytes are not those that were stored."""
    try:
        return memory_of(row_id, row, encoder, score)
    except ValueError as error:
        raise CorruptStorageError(errno.EIO, str(error), str(database.path)) from error


def _expired(row: Row) -> bool:
    return row.expires_at is not None and row.expires_at <= time.time()
