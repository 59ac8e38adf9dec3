"""Splits, Parquet shards and the report of the training corpus."""

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Features, Value

from .data_document import Document

SPLITS = ("validation", "test", "train")
HELD_OUT_PERCENT = 2
COLUMNS = ("document_id", "source", "licence", "modality", "prompt", "text")


@dataclass
class Amount:
    """How much a shard holds: documents, bytes of UTF-8, and tokens when a tokenizer counted them."""

    documents: int = 0
    bytes: int = 0
    tokens: int | None = None


def split_of(document: Document) -> str:
    """validation, test (2% each) or train, by the hash of the file the document was taken from."""
    place = int.from_bytes(hashlib.sha256(document.group.encode()).digest()[:8], "big") % 100
    if place < HELD_OUT_PERCENT:
        return "validation"
    return "test" if place < 2 * HELD_OUT_PERCENT else "train"


def held_out_first(documents: Iterable[Document]) -> list[tuple[str, Document]]:
    """(split, document), validation then test then train, each in the given order."""
    return sorted(((split_of(document), document) for document in documents), key=lambda pair: SPLITS.index(pair[0]))


def write_shards(documents: Iterable[tuple[str, Document]], folder: Path) -> None:
    """Write `folder/{split}/{source}.parquet`, one row a document.

    Use: `load_dataset("parquet", data_files="data/shards/train/*.parquet")`.
    """
    shards: dict[tuple[str, str], list[Document]] = defaultdict(list)
    for split, document in documents:
        shards[document.source, split].append(document)
    features = Features({column: Value("string") for column in COLUMNS})
    for (source, split), rows in sorted(shards.items()):
        path = folder / split / f"{source}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {column: [getattr(row, column) for row in rows] for column in COLUMNS}
        Dataset.from_dict(columns, features=features).to_parquet(path)


def measure_shards(
    folder: Path, count_tokens: Callable[[list[str]], int] | None = None
) -> dict[str, dict[str, Amount]]:
    """How much the shards of a folder hold, by source and split, with tokens if there is a way to count them."""
    amounts: dict[str, dict[str, Amount]] = defaultdict(dict)
    for path in sorted(folder.glob("*/*.parquet")):
        with tempfile.TemporaryDirectory() as cache:
            rows = Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        texts = [prompt + text for prompt, text in zip(rows["prompt"], rows["text"], strict=True)]
        tokens = count_tokens(texts) if count_tokens else None
        amounts[path.stem][path.parent.name] = Amount(len(texts), sum(len(text.encode()) for text in texts), tokens)
    return amounts
