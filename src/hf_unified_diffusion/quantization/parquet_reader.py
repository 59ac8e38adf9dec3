"""Zero-copy reader of ArrowQuant Parquet files: mmap and plain Python, never pyarrow (docs/parquet_format.md)."""

import contextlib
import hashlib
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .integer import check_scales
from .parquet_columns import check_columns
from .parquet_footer import Footer, parse_footer
from .parquet_layout import DTYPES, MAGIC, MAX_FOOTER_BYTES, FormatError, Part, require

Verify = Literal["header", "touch", "full"]


class ParquetWeights(Mapping[str, Tensor]):
    """Names to tensors that live in the mapped file, in file order; see `read_parquet_weights`.

    Attributes: `metadata` (what the writer was given), `roles` (name -> dense, packed, scale, ...), `path`,
    `manifest_sha256` (identifies the content).
    A tensor stored in several parts (above 1 GiB) is the one case that is copied, at each access.
    """

    def __init__(self, path: str | os.PathLike[str], verify: Verify):
        self.path = os.fspath(path)
        self._verify = verify
        self._map, footer = map_footer(self.path)
        self.metadata: dict[str, Any] = footer.metadata
        self._parts: dict[str, list[Part]] = {}
        for part in footer.parts:
            self._parts.setdefault(part.name, []).append(part)
        self.roles = {name: parts[0].role for name, parts in self._parts.items()}
        self.manifest_sha256 = footer.manifest_sha256
        # with "header" nothing of a tensor's own bytes is ever read
        self._verified: set[str] = set(self._parts) if verify == "header" else set()
        require(compute_seal(self._map, footer) == footer.seal, "the file must match its seal")
        if verify == "full":
            check_columns(self._map, footer)
            for name in self:
                self[name]

    def __getitem__(self, name: str) -> Tensor:
        parts = self._parts[name]
        chunks = [self._bytes(part) for part in parts]
        flat = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
        values = flat.view(DTYPES[parts[0].dtype])
        if name not in self._verified:
            for part in parts:
                _check_crc(self._map, part)
            _check_values(name, parts[0].role, values)
            self._verified.add(name)
        return values.view(parts[0].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _bytes(self, part: Part) -> Tensor:
        if part.nbytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=part.nbytes, offset=part.offset)


def map_footer(path: str) -> tuple[mmap.mmap, Footer]:
    """Map a file and check its footer."""
    mapped = _map_file(path)
    start = _footer_start(mapped)
    return mapped, parse_footer(mapped[start:-8], start)


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[tuple[int, int]]:
    """Open a regular file (links are followed) for reading: (descriptor, bytes); FormatError for any other kind."""
    # O_NONBLOCK: opening a FIFO must not wait for a writer
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        require(stat.S_ISREG(status.st_mode), "weights must be a regular file")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def _map_file(path: str) -> mmap.mmap:
    with open_regular(path) as (descriptor, size):
        require(size >= 12, f"a Parquet file has at least 12 bytes, got {size}")
        # private and writable: an in-place write copies its page; PROT_READ alone would crash the process
        return mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)


def _footer_start(mapped: mmap.mmap) -> int:
    require(mapped[:4] == MAGIC and mapped[-4:] == MAGIC, "the file must start and end with PAR1")
    (length,) = struct.unpack("<I", mapped[-8:-4])
    allowed = min(MAX_FOOTER_BYTES, len(mapped) - 12)
    require(0 < length <= allowed, f"the footer must have 1..{allowed} bytes, got {length}")
    return len(mapped) - 8 - length


def _check_crc(mapped: mmap.mmap, part: Part) -> None:
    with memoryview(mapped) as view, view[part.offset - 4 : part.offset + part.nbytes] as page:
        require(zlib.crc32(page) == part.crc32, f"the bytes of {part.name!r} must match their CRC-32")


def _check_values(name: str, role: str, values: Tensor) -> None:
    if role == "scale":
        try:
            check_scales(name, values)
        except ValueError as error:
            raise FormatError(str(error)) from None
    if values.dtype == torch.bool:
        require(bool((values.view(torch.uint8) <= 1).all()), f"booleans of {name!r} must be stored as 0 or 1")


def compute_seal(mapped: mmap.mmap, footer: Footer) -> bytes:
    """SHA-256 (hexadecimal) of every byte that is not a tensor's, with the seal's own digits read as zeros."""
    digest = hashlib.sha256()
    position = 0
    for part in footer.parts:
        digest.update(mapped[position : part.offset])
        position = part.offset + part.nbytes
    tail = mapped[position:]
    require(tail.count(footer.seal) == 1, "the seal must stand in the footer once")
    digest.update(tail.replace(footer.seal, b"0" * 64))
    return digest.hexdigest().encode()
