"""The index of weights in several files: which tensor is where, and what each file must be."""

import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .parquet_footer import strict_json
from .parquet_layout import MAX_FOOTER_BYTES, MAX_SHARDS, VERSION, FormatError, require
from .parquet_reader import open_regular

INDEX_SUFFIX = ".index.json"
# the content's digest is part of the name: new files never overwrite those an old index still names
_SHARD_NAME = re.compile(r"[\w.-]+-\d{5}-of-\d{5}-[0-9a-f]{16}(\.[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class WeightIndex:
    """`weight_map`: tensor name -> file name. `digests`: file name -> SHA-256 of that file's manifest."""

    weight_map: dict[str, str]
    digests: dict[str, str]


def shard_name(name: str, number: int, count: int, digest: str) -> str:
    """The name of one of several files: `model-00001-of-00002-0123456789abcdef.arrowquant.parquet`."""
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{number:05d}-of-{count:05d}-{digest[:16]}{dot}{suffix}"


def read_index(path: str | os.PathLike[str]) -> WeightIndex:
    """Read and check an index; its file names cannot leave the folder. FormatError for anything else."""
    with open_regular(path) as (descriptor, size):
        require(size <= MAX_FOOTER_BYTES, f"an index has at most {MAX_FOOTER_BYTES} bytes, got {size}")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            fields = strict_json(file.read(size), "index")
    weight_map, about = fields.get("weight_map"), fields.get("metadata")
    if type(weight_map) is not dict or type(about) is not dict:
        raise FormatError("an index needs the objects weight_map and metadata")
    version, digests = about.get("version"), about.get("manifest_sha256")
    require(type(version) is int and version == VERSION, f"the index's version must be {VERSION}, got {version!r:.40}")
    if type(digests) is not dict or not 1 <= len(digests) <= MAX_SHARDS:
        raise FormatError(f"an index needs the sha256 of 1 to {MAX_SHARDS} manifests")
    for name, digest in digests.items():
        require(_SHARD_NAME.fullmatch(name) is not None, f"an index must name shards beside it, got {name[:80]!r}")
        require(type(digest) is str, f"the sha256 of {name} must be a string")
    named: list[Any] = list(weight_map.values())
    require(all(type(name) is str for name in named), "weight_map must map to file names")
    require(set(named) <= set(digests), "weight_map must map to files whose sha256 the index holds")
    return WeightIndex(weight_map, digests)


def write_index(path: Path, index: WeightIndex, total_bytes: int) -> None:
    """Write an index, fsynced; it appears whole or not at all."""
    about = {"format": "arrowquant", "version": VERSION, "total_size": total_bytes, "manifest_sha256": index.digests}
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(partial, "x") as file:
            json.dump({"metadata": about, "weight_map": index.weight_map}, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
