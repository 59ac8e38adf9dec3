"""ArrowStorage: a crash-safe memory of a user's own things, found by their embeddings."""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

from ..contracts import Encoder
from .database import Database, StorageError
from .derived_indexes import DerivedIndexes
from .hopfield import check_beta, hopfield_readout
from .reading import best_of, checked_memory, find_rows, intact_rows, pages
from .records import (
    Memory,
    Payload,
    captions_of,
    check_modality,
    check_name,
    check_status,
    check_time,
    metadata_json,
    unit_vector,
    unit_vectors,
)
from .rows import (
    Namespace,
    Row,
    bump,
    check_encoder,
    check_width,
    count_rows,
    delete_expired,
    delete_rows,
    find_namespace,
    insert_rows,
    make_row,
)
from .transfer import indexed_dataset, read_parquet, write_parquet
from .vector_index import FLAT_ROWS, import_faiss

logger = logging.getLogger(__name__)

MAX_K = 1 << 14


@dataclass(frozen=True)
class Recall:
    """What a query brings back: the nearest memories, best first, and their Hopfield readout.

    Attributes:
        weights: softmax(beta q K^T), one a memory.
        readout: the weighted sum of the memories' embeddings; zeros where nothing was found.
    """

    memories: tuple[Memory, ...]
    weights: Float[Tensor, "found"]
    readout: Float[Tensor, "width"]


class ArrowStorage:
    """A memory in a folder: SQLite holds the truth, vector indexes are derived from it.

    What `add` returned is on the disk and survives crashes. Every namespace (one a user) is searched by itself, and
    takes embeddings of one encoder, of the first one it was given. Several threads and processes may use one folder;
    each process opens its own.

    Args:
        path: the folder; made if there is none.
        encoder: what makes embeddings of texts, or only its name where the caller brings the embeddings. None: for
            work without embeddings (forget, export, stats).
        read_only: never write, not even an index file; for folders that cannot be written.
        flat_rows: namespaces of more memories are searched by IVF-SQ8 (approximate), of fewer exactly.
        timeout_s: how long a call waits for another process that writes.

    Raises:
        ValueError: an encoder's name that is not printable, a path that is no folder, a folder of something else.
        StorageError: the folder cannot be opened.
        ImportError: FAISS is missing (install the extra "memory").

    Usage:
        storage = ArrowStorage("memories", encoder=encoder)
        (tea,) = storage.add("anna", ["Anna drinks green tea."], source="chat")
        storage.search("anna", "what does she drink?", k=3)[0].payload
        storage.forget("anna", [tea])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        encoder: Encoder | str | None = None,
        *,
        read_only: bool = False,
        flat_rows: int = FLAT_ROWS,
        timeout_s: float = 30.0,
    ):
        import_faiss()
        self._encode = None if isinstance(encoder, str) else encoder
        self.encoder = encoder if isinstance(encoder, str) or encoder is None else encoder.name
        if self.encoder is not None:
            check_name("the encoder's name", self.encoder)
        self.path = Path(path)
        self._database = Database(self.path, read_only, timeout_s)
        self._indexes = DerivedIndexes(self._database, self.path, flat_rows)
        if not read_only:
            self._finish_forgetting()

    def __enter__(self) -> "ArrowStorage":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the memory stays on the disk."""
        self._database.close()

    def add(
        self,
        namespace: str,
        payloads: Payload | Sequence[Payload],
        embeddings: Float[np.ndarray, "count width"] | None = None,
        *,
        modality: str = "text",
        source: str = "user",
        status: str = "active",
        expires_at: float | None = None,
        sample_rate_hz: int | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        captions: Sequence[str] | None = None,
    ) -> list[int]:
        """Remember things, all or none of them; when it returns they are on the disk.

        What is remembered a second time (same payload, embedding, source and metadata) keeps its id and status, and
        the later expiry counts.

        Args:
            namespace: whose memory; 1 to 256 printable characters.
            payloads: one or several of the modality: str, uint8 (H, W, 3) or float32 (samples,).
            embeddings: one a payload, scaled to length 1; None: texts, and captions of anything else, are embedded by
                the storage's encoder.
            source: where they come from.
            status: "active", or "quarantine" for what nobody has trusted yet.
            expires_at: seconds since 1970 from which on they are not recalled.
            sample_rate_hz: of audio.
            metadata: one JSON object a payload.
            captions: what a payload is found by instead of itself, one each; kept in its metadata as "caption".

        Returns: their ids.

        Raises:
            ValueError: one of these is not as described, or the namespace holds embeddings of another encoder.
            StorageError: the disk is full, read-only or broken; nothing was added.

        Usage: `storage.add("anna", [pixels], captions=["my dog Rex"], modality="image")`
        """
        items = [payloads] if isinstance(payloads, str | np.ndarray) else list(payloads)
        told = items if captions is None else captions_of(captions, len(items), embeddings)
        vectors = unit_vectors(self._embed(told) if embeddings is None else embeddings) if items else np.empty((0, 1))
        annotations = [{}] * len(items) if metadata is None else list(metadata)
        if captions is not None and len(annotations) == len(items):
            annotations = [{**one, "caption": caption} for one, caption in zip(annotations, told, strict=True)]
        if not len(items) == len(vectors) == len(annotations):
            raise ValueError(
                f"every payload must have one embedding and one metadata, got {len(items)} payloads, "
                f"{len(vectors)} embeddings, {len(annotations)} metadata"
            )
        check_name("source", source)
        check_status(status)
        if expires_at is not None:
            check_time("expires_at", expires_at)
        rows = [
            make_row(
                self._encoder_name(), modality, payload, sample_rate_hz, vector, source, metadata_json(annotation),
                status, time.time(), expires_at,
            )
            for payload, vector, annotation in zip(items, vectors, annotations, strict=True)
        ]  # fmt: skip
        return self._insert(namespace, rows)

    def search(
        self, namespace: str, query: str | Float[np.ndarray, "width"], k: int = 10, modality: str | None = None
    ) -> list[Memory]:
        """The k nearest active memories of a namespace by inner product of unit vectors, best first.

        Exact up to `flat_rows` memories, above them approximate. Never holds anything of another namespace, nor what
        was forgotten, revoked or has expired before the call.

        Args:
            query: a text for the storage's encoder, or its embedding.
            k: how many, 1 to 16,384; fewer come where there are fewer.
            modality: only memories of it; where they are few among many others, all are looked through.

        Raises:
            ValueError: a k out of range, an unknown modality; a query of another encoder or width.
            CorruptStorageError: a memory that was found is damaged.

        Usage: `[memory.payload for memory in storage.search("anna", "tea", k=3)]`
        """
        check_name("namespace", namespace)
        if type(k) is not int or not 0 < k <= MAX_K:
            raise ValueError(f"k must be in 1..{MAX_K}, got {k!r}")
        if modality is not None:
            check_modality(modality)
        vector = unit_vector(self._embed([query])[0] if isinstance(query, str) else query)
        place, wanted = self._indexes.last_seen(namespace, len(vector)), k
        is_known = place is not None  # one statement then tells whether it is as it was, and gives the rows
        if place is None:
            place = self._place(namespace, len(vector))
        while place is not None:
            ids = self._indexes.nearest(place, vector, wanted)
            state, rows = find_rows(self._database, namespace, ids, modality)
            if is_known and state != (place.number, place.revision, place.last_id):
                place, is_known = self._place(namespace, len(vector)), False
                continue
            found, num_live = best_of(self._database, place, rows, vector, k)
            if num_live >= k or len(ids) < wanted:
                return found
            wanted *= 4  # some have expired since the index was made, or are of another modality
        return []

    def recall(
        self,
        namespace: str,
        query: str | Float[np.ndarray, "width"],
        k: int = 64,
        beta: float = 16.0,
        modality: str | None = None,
    ) -> Recall:
        """The k nearest memories and the readout softmax(beta q K^T) V of their embeddings.

        Args:
            beta: at 0 all k count the same, at large values only the nearest.
            modality: only memories of it.

        Raises ValueError as `search` does, and for a beta that is negative or not finite.

        Usage: `storage.recall("anna", "tea", k=16).readout`
        """
        check_beta(beta)
        if isinstance(query, str):
            query = self._embed([query])[0]
        memories = self.search(namespace, query, k, modality)
        vector = unit_vector(query)
        keys = np.stack([memory.embedding for memory in memories]) if memories else np.empty((0, len(vector)), "f4")
        keys_tensor = torch.from_numpy(keys)
        readout, weights = hopfield_readout(torch.from_numpy(vector), keys_tensor, keys_tensor, beta)
        return Recall(tuple(memories), weights, readout)

    def memories(self, namespace: str, status: str | None = None) -> Iterator[Memory]:
        """All memories of a namespace that have not expired, by id; of one status if it is given.

        Raises CorruptStorageError at one that is damaged.

        Usage: `for memory in storage.memories("anna", status="quarantine"): ...`
        """
        check_name("namespace", namespace)
        if status is not None:
            check_status(status)
        for place, page in pages(self._database, namespace):
            for row_id, row in page:
                if status in (None, row.status):
                    yield checked_memory(self._database, row_id, row, place.encoder)

    def set_status(self, namespace: str, ids: Sequence[int], status: str) -> int:
        """Trust, quarantine or revoke memories; what was revoked stays so. Gives how many have changed.

        Raises ValueError for another status.

        Usage: `storage.set_status("anna", [3, 4], "active")`
        """
        check_name("namespace", namespace)
        check_status(status)
        with self._database.write() as sql:
            place = find_namespace(sql, namespace)
            if place is None:
                return 0
            changed = sql.executemany(
                "UPDATE memories SET status = ? WHERE id = ? AND namespace = ? AND status NOT IN (?, 'revoked')",
                [(status, int(row_id), place.number, status) for row_id in ids],
            ).rowcount
            bump(sql, place.number)
        return changed

    def forget(self, namespace: str, ids: Sequence[int] | None = None) -> int:
        """Really remove memories, all of the namespace and its name where no ids are given. Gives how many there were.

        When it returns, no file of the folder holds their bytes: the store is written anew without them (a minute
        for a million memories), and index files that held them are deleted. What a process killed in the middle left
        undone, the next one that opens the folder finishes. Backups and exports are yours to delete, and freed blocks
        are the file system's.

        Raises StorageError where the store cannot be written anew (a full disk, a reader that stays): the memories
        are not found any more, and `purge` tries again to remove their bytes.

        Usage: `storage.forget("anna")`
        """
        check_name("namespace", namespace)
        with self._database.write() as sql:
            place = find_namespace(sql, namespace)
            if place is None:
                return 0
            num_removed = delete_rows(sql, place, ids)
        if ids is None:
            self._indexes.drop(namespace)
        self._database.scrub(self._indexes.remove_outdated)
        return num_removed

    def purge(self) -> int:
        """Really remove what has expired, of every namespace. Gives how many there were.

        Raises StorageError as `forget` does.

        Usage: `storage.purge()`
        """
        with self._database.write() as sql:
            num_removed = delete_expired(sql, time.time())
        self._database.scrub(self._indexes.remove_outdated)
        return num_removed

    def export(self, namespace: str, path: str | os.PathLike[str]) -> int:
        """Write a namespace to one Parquet file, whole or not at all. Gives the number of memories.

        What has expired stays out; quarantined and revoked memories go with their status. Every Parquet reader opens
        the file: texts are in the column `text`, pixels and float32 samples in `data`, as `layout` says.

        Raises:
            CorruptStorageError: a memory is damaged.
            OSError: the file cannot be written.

        Usage: `storage.export("anna", "anna.parquet")`
        """
        return write_parquet(path, intact_rows(self._database, namespace))

    def import_(self, namespace: str, path: str | os.PathLike[str], *, trusted: bool = False) -> int:
        """Take in a file that `export` wrote, all of it or nothing. Gives the number of memories in it.

        Args:
            trusted: keep each memory's status; else all of them enter quarantine.

        Raises ValueError for a file of other columns, values or another encoder.

        Usage: `storage.import_("anna", "anna.parquet", trusted=True)`
        """
        return len(self._insert(namespace, read_parquet(path, self._encoder_name(), trusted)))

    def dataset(self, namespace: str) -> Dataset:
        """The active memories as a `datasets.Dataset` in memory, with a FAISS index on its column `embedding`.

        Usage: `storage.dataset("anna").get_nearest_examples("embedding", vector, k=5)`
        """
        active = (
            [pair for pair in page if pair[0].status == "active"] for page in intact_rows(self._database, namespace)
        )
        return indexed_dataset(active)

    def stats(self, namespace: str | None = None) -> dict[str, Any]:
        """Counts of one namespace, or of the whole storage; what has expired counts until it is removed.

        Usage: `storage.stats("anna")["active"]`
        """
        if namespace is not None:
            check_name("namespace", namespace)
        with self._database.read() as sql:
            counts = count_rows(sql, namespace)
            place = None if namespace is None else find_namespace(sql, namespace)
        if namespace is None:
            return {**counts, "bytes_on_disk": self._database.num_bytes()}
        if place is None:
            return counts
        return {**counts, "encoder": place.encoder, "width": place.dimension, **self._indexes.describe(place)}

    def damage(self) -> list[str]:
        """What is wrong with the store: SQLite's own check of the file, then every memory's digest. Empty: nothing.

        Usage: `assert not storage.damage()`
        """
        found = self._database.damage()
        if found:
            return found
        with self._database.read() as sql:
            names = [row[0] for row in sql.execute("SELECT name FROM namespaces ORDER BY number")]
        return [
            f"memory {row_id} is not what was stored"
            for name in names
            for place, page in pages(self._database, name)
            for row_id, row in page
            if not row.is_intact(place.encoder)
        ]

    def _insert(self, namespace: str, rows: Iterable[Row]) -> list[int]:
        """Insert rows that were checked, all or none of them."""
        check_name("namespace", namespace)
        with self._database.write() as sql:
            delete_expired(sql, time.time())
            return insert_rows(sql, namespace, self._encoder_name(), rows)

    def _finish_forgetting(self) -> None:
        """What a killed process had left; where the disk is full it is left to the next one."""
        try:
            self._database.scrub(self._indexes.remove_outdated)
        except StorageError as error:
            logger.warning("%s", error)

    def _place(self, namespace: str, width: int) -> Namespace | None:
        """The namespace as it is now, if there is one, checked to be of the storage's encoder and of that width."""
        with self._database.read() as sql:
            place = find_namespace(sql, namespace)
        if place is not None:
            check_encoder(place, self._encoder_name())
            check_width(place, width)
        return place

    def _encoder_name(self) -> str:
        if self.encoder is None:
            raise ValueError("adding and searching need an encoder, or its name, got ArrowStorage(path) without one")
        return self.encoder

    def _embed(self, texts: Sequence[Payload]) -> Float[np.ndarray, "count width"]:
        only_texts = [text for text in texts if isinstance(text, str)]
        if self._encode is None or len(only_texts) < len(texts):
            raise ValueError(
                "embeddings must be given but for texts of a storage that was opened with an encoder, got "
                f"{sorted({type(text).__name__ for text in texts})} and encoder {self.encoder!r}"
            )
        return self._encode(only_texts)
