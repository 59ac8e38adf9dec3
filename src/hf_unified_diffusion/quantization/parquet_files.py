"""Weights as one Parquet file, or as several with an index: the way in and out of ArrowQuant files."""

import contextlib
import os
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from .parquet_index import INDEX_SUFFIX, WeightIndex, read_index, shard_name, write_index
from .parquet_layout import MAX_PART_BYTES, MAX_SHARDS, FormatError, require
from .parquet_reader import ParquetWeights, Verify
from .parquet_writer import checked_metadata, fsync_path, write_file


class ShardedParquetWeights(Mapping[str, Tensor]):
    """Names to tensors of several mapped files, in the order of their index; see `read_parquet_weights`.

    Attributes: `metadata` and `roles` as of `ParquetWeights`, `path` of the index, `files` (name -> ParquetWeights).
    """

    def __init__(self, path: str | os.PathLike[str], verify: Verify):
        self.path = os.fspath(path)
        self._index = read_index(self.path)
        folder = Path(self.path).parent
        self.files = {name: _open(folder / name, verify) for name in self._index.digests}
        names: dict[str, set[str]] = {name: set() for name in self.files}
        for tensor, name in self._index.weight_map.items():
            names[name].add(tensor)
        for name, file in self.files.items():
            require(file.manifest_sha256 == self._index.digests[name], f"{name} must be the file that the index names")
            require(names[name] == set(file), f"the index must map exactly the tensors of {name} to it")
        self.metadata: dict[str, Any] = next(iter(self.files.values())).metadata
        self.roles = {tensor: self.files[name].roles[tensor] for tensor, name in self._index.weight_map.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.files[self._index.weight_map[name]][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.weight_map)

    def __len__(self) -> int:
        return len(self._index.weight_map)


def read_parquet_weights(
    path: str | os.PathLike[str], verify: Verify = "touch"
) -> ParquetWeights | ShardedParquetWeights:
    """Map a weight file, or all files of an index, into memory: names to tensors, without copying or reading bytes.

    Args:
        path: the file, or an index (`*.index.json`) whose files lie beside it. Tensors share the files' pages
            copy-on-write: writing to one never reaches the disk.
        verify: "header" checks the manifest and the seal, which vouches for every byte that is not a tensor's;
            "touch" adds CRC-32 of the tensor's bytes, finite positive scales and boolean values at first access;
            "full" checks every byte of the file now, also that what other programs read agrees with the manifest.

    Raises:
        FormatError: whatever is wrong with the file's content, here or (verify="touch") at first access of a tensor.
        OSError: the file cannot be opened.

    Usage: `weights = read_parquet_weights("model.arrowquant.parquet"); weights["norm.weight"]`
    """
    if verify not in get_args(Verify):
        raise ValueError(f"verify must be one of {sorted(get_args(Verify))}, got {verify!r}")
    return ShardedParquetWeights(path, verify) if os.fspath(path).endswith(INDEX_SUFFIX) else _open(path, verify)


def _open(path: str | os.PathLike[str], verify: Verify) -> ParquetWeights:
    try:
        return ParquetWeights(path, verify)
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        # the decoder yields plain values of any type; comparing the wrong ones is a broken file, not a bug
        raise FormatError(f"malformed weight file: {type(error).__name__}: {error}") from None


def write_parquet_weights(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any] | None = None,
    *,
    roles: Mapping[str, str] | None = None,
    max_part_bytes: int = MAX_PART_BYTES,
    max_shard_bytes: int | None = None,
) -> Path:
    """Write tensors to a Parquet file that `read_parquet_weights` maps without a copy and any Parquet reader opens.

    The weights at `path` are replaced whole or not at all: files are written beside, fsynced, renamed, and the folder
    fsynced. Equal input gives equal bytes. Aliased tensors are written once each: remove ties first.

    Args:
        path: the file to replace.
        tensors: names (printable, at most 512 characters) to dense tensors on any device, written in this order.
        metadata: JSON object kept in the manifest.
        roles: name -> "dense" (default), "packed", "scale", "zero", "codebook" or "outlier".
        max_part_bytes: larger tensors are stored as several row groups (1 GiB; Parquet cannot hold 2 GiB values).
        max_shard_bytes: above it, tensors go to several files beside `path`, with the index `path`.index.json; a
            larger tensor has a file of its own. None: one file.

    Returns: what to hand to `read_parquet_weights`: `path`, or the index.

    Raises:
        ValueError: a name, dtype, role, metadata or bound the format cannot hold.
        OSError: the disk failed; the old weights are as they were.

    Usage: `write_parquet_weights("model.arrowquant.parquet", model.state_dict(), {"licence": "apache-2.0"})`
    """
    path, roles, metadata = Path(path), dict(roles or {}), checked_metadata(metadata or {})
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1 or None, got {max_shard_bytes}")
    shards = [list(tensors)] if max_shard_bytes is None else _split(tensors, max_shard_bytes)
    if len(shards) > MAX_SHARDS:
        raise ValueError(f"weights go to at most {MAX_SHARDS} files, got {len(shards)}: raise max_shard_bytes")
    index_path = path.with_name(path.name + INDEX_SUFFIX)
    if len(shards) == 1:
        write_file(path, tensors, metadata, roles, max_part_bytes)
        _remove(path.parent, {index_path.name} | _files_of(index_path))
        return path
    replaced = _files_of(index_path)
    grouped = [{name: tensors[name] for name in names} for names in shards]
    kept = _write_sharded(path, index_path, grouped, metadata, roles, max_part_bytes)
    _remove(path.parent, {path.name} | replaced - kept)
    return index_path


def _split(tensors: Mapping[str, Tensor], max_shard_bytes: int) -> list[list[str]]:
    """Names in their order, as many a file as the bound holds and at least one."""
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= tensor.nbytes
    return shards


def _write_sharded(
    path: Path,
    index_path: Path,
    shards: Sequence[Mapping[str, Tensor]],
    metadata: Mapping[str, Any],
    roles: Mapping[str, str],
    max_part_bytes: int,
) -> set[str]:
    """Write files under names of their own, then the index, which makes them the weights; returns their names."""
    token, count = secrets.token_hex(4), len(shards)
    partial = [path.with_name(f"{path.name}.tmp-{os.getpid()}-{token}-{number}") for number in range(count)]
    digests: dict[str, str] = {}
    try:
        for number, (file, tensors) in enumerate(zip(partial, shards, strict=True), start=1):
            digest = write_file(file, tensors, metadata, roles, max_part_bytes)
            digests[shard_name(path.name, number, count, digest)] = digest
        for file, name in zip(partial, digests, strict=True):
            os.replace(file, path.with_name(name))
        weight_map = {tensor: name for tensors, name in zip(shards, digests, strict=True) for tensor in tensors}
        total_bytes = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
        fsync_path(path.parent)  # the files' names must be on disk before an index that holds them
        write_index(index_path, WeightIndex(weight_map, digests), total_bytes)
    except BaseException:
        _remove(path.parent, digests.keys() - _files_of(index_path))  # old or new, the index's files stay
        raise
    finally:
        _remove(path.parent, (file.name for file in partial))
    fsync_path(path.parent)
    return set(digests)


def _files_of(index_path: Path) -> set[str]:
    """The files that an index names; none where there is no index or a broken one."""
    with contextlib.suppress(FileNotFoundError, FormatError):
        return set(read_index(index_path).digests)
    return set()


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
