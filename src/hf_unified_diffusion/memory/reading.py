"""Memories out of the store: page by page, or the best of what an index found."""

import errno
import time
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from .database import CorruptStorageError, Database
from .records import Memory, check_name
from .rows import Namespace, Row, find_namespace, memory_of, read_page, read_rows
from .vector_index import Ids


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


def best_of(
    database: Database, place: Namespace, ids: Ids, query: Float32[np.ndarray, "width"], k: int
) -> tuple[list[Memory], int]:
    """Of these ids, the k best that the store lets be recalled, by their exact scores; and how many it lets."""
    with database.look() as sql:
        rows = read_rows(sql, place.number, ids)
    live = [(row_id, row) for row_id, row in rows if row.status == "active" and not _expired(row)]
    keys = np.frombuffer(b"".join(row.embedding for _, row in live), "<f4").reshape(-1, place.dimension)
    scores = keys @ query
    order = np.argsort(-scores, kind="stable")[:k]
    return [checked_memory(database, live[i][0], live[i][1], place.encoder, float(scores[i])) for i in order], len(live)


def checked_memory(database: Database, row_id: int, row: Row, encoder: str, score: float | None = None) -> Memory:
    """A row as it is handed out; raises CorruptStorageError where its bytes are not those that were stored."""
    try:
        return memory_of(row_id, row, encoder, score)
    except ValueError as error:
        raise CorruptStorageError(errno.EIO, str(error), str(database.path)) from error


def _expired(row: Row) -> bool:
    return row.expires_at is not None and row.expires_at <= time.time()
