"""A namespace as a Parquet file and back, and as a `datasets` table with a FAISS index."""

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, load_dataset
from datasets.arrow_writer import ParquetWriter

from .records import check_name, check_status, check_time, metadata_json, unit_vectors, unpack
from .rows import Row, make_row
from .vector_index import import_faiss

FEATURES = Features(
    {
        "modality": Value("string"),
        "text": Value("string"),
        "data": Value("binary"),
        "layout": Value("string"),
        "embedding": List(Value("float32")),
        "encoder": Value("string"),
        "source": Value("string"),
        "metadata": Value("string"),
        "status": Value("string"),
        "created_at": Value("float64"),
        "expires_at": Value("float64"),
    }
)
TEXTS = ("text", "code")
UNIT_TOLERANCE = 1e-3
Page = list[tuple[Row, str]]  # rows with their encoder


def columns_of(page: Page) -> dict[str, list[Any]]:
    """Rows as columns of FEATURES."""
    return {
        "modality": [row.modality for row, _ in page],
        "text": [row.payload.decode() if row.modality in TEXTS else None for row, _ in page],
        "data": [None if row.modality in TEXTS else row.payload for row, _ in page],
        "layout": [row.layout for row, _ in page],
        "embedding": [np.frombuffer(row.embedding, "<f4") for row, _ in page],
        "encoder": [encoder for _, encoder in page],
        "source": [row.source for row, _ in page],
        "metadata": [row.metadata for row, _ in page],
        "status": [row.status for row, _ in page],
        "created_at": [row.created_at for row, _ in page],
        "expires_at": [row.expires_at for row, _ in page],
    }


def write_parquet(path: str | os.PathLike[str], pages: Iterable[Page]) -> int:
    """Write rows to a file that appears whole or not at all; gives their number."""
    path, num_rows = Path(path), 0
    partial_path = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with open(partial_path, "xb") as file:
            writer = ParquetWriter(features=FEATURES, stream=file)
            for page in pages:
                if page:
                    writer.write_batch(columns_of(page))
                num_rows += len(page)
            writer.finalize(close_stream=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)
    return num_rows


def read_parquet(path: str | os.PathLike[str], encoder: str, trusted: bool) -> Iterator[Row]:
    """Rows of a file that `write_parquet` wrote, each checked as if it were new.

    Raises ValueError for other columns or values, and for embeddings of another encoder.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path must be a Parquet file, got {str(path)!r}")
    table = load_dataset("parquet", data_files=[str(path.resolve())], split="train", streaming=True)
    for entry in table:
        if not set(FEATURES) <= set(entry):
            raise ValueError(f"the file must have the columns {sorted(FEATURES)}, got {sorted(entry)}")
        yield _checked_row(entry, encoder, trusted)


def _checked_row(entry: dict[str, Any], encoder: str, trusted: bool) -> Row:
    if entry["encoder"] != encoder:
        raise ValueError(f"embeddings of the file must come from the encoder {encoder!r}, got {entry['encoder']!r}")
    embedding = np.asarray(entry["embedding"], np.float32)
    (unit,) = unit_vectors([embedding])
    if not np.allclose(embedding, unit, atol=UNIT_TOLERANCE):
        raise ValueError(f"embeddings of the file must have length 1, got {np.linalg.norm(embedding):.4g}")
    check_name("source", entry["source"])
    check_status(entry["status"])
    check_time("created_at", entry["created_at"])
    if entry["expires_at"] is not None:
        check_time("expires_at", entry["expires_at"])
    try:
        metadata = json.loads(entry["metadata"])
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"metadata must be JSON, got {error}") from None
    data = (entry["text"] or "").encode() if entry["modality"] in TEXTS else bytes(entry["data"] or b"")
    payload, sample_rate_hz = unpack(entry["modality"], data, entry["layout"])
    return make_row(
        encoder=encoder,
        modality=entry["modality"],
        payload=payload,
        sample_rate_hz=sample_rate_hz,
        embedding=embedding,
        source=entry["source"],
        metadata=metadata_json(metadata),
        status=entry["status"] if trusted else "quarantine",
        created_at=entry["created_at"],
        expires_at=entry["expires_at"],
    )


def indexed_dataset(pages: Iterable[Page]) -> Dataset:
    """Rows as a table in memory, with an exact inner-product index on `embedding`."""
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for page in pages:
        for name, values in columns_of(page).items():
            columns[name] += values
    table = Dataset.from_dict(columns, features=FEATURES)
    if len(table):
        vectors = np.stack(columns["embedding"])
        metric = import_faiss().METRIC_INNER_PRODUCT
        table.add_faiss_index_from_external_arrays(vectors, "embedding", metric_type=metric)
    return table
