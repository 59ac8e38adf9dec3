"""Zero-copy reader of ArrowQuant Parquet files: mmap and plain Python, never pyarrow (docs/parquet_format.md)."""

import hashlib
import json
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .integer import check_scales
from .parquet_footer import Footer, column_chunk, parse_footer
from .parquet_layout import (
    COLUMNS,
    DTYPES,
    MAGIC,
    MAX_COLUMN_HEADER_BYTES,
    MAX_FOOTER_BYTES,
    MAX_PAGE_HEADER_BYTES,
    FormatError,
    Part,
    require,
)
from .thrift import ThriftDecoder

Verify = Literal["header", "touch", "full"]
_DATA_PAGE_V2 = 3
# DataPageHeaderV2: one value, no nulls, one row, PLAIN, no levels, not compressed
_ONE_PLAIN_VALUE = {1: 1, 2: 0, 3: 1, 4: 0, 5: 0, 6: 0, 7: False}


class ParquetWeights(Mapping[str, Tensor]):
    """Names to tensors that live in the mapped file, in file order; see `read_parquet_weights`.

    Attributes: `metadata` (what the writer was given), `roles` (name -> dense, packed, scale, ...), `path`.
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
        self._verified: set[str] = set()
        if verify == "full":
            _check_columns(self._map, footer)
            require(compute_seal(self._map, footer) == footer.seal, "the file must match its seal")
            for name in self:
                self[name]

    def __getitem__(self, name: str) -> Tensor:
        parts = self._parts[name]
        dtype = DTYPES[parts[0].dtype]
        if name not in self._verified:
            for part in parts:
                check_page(self._map, part)
                if self._verify != "header":
                    _check_crc(self._map, part)
        chunks = [self._bytes(part) for part in parts]
        flat = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
        if name not in self._verified and self._verify != "header":
            _check_values(name, parts[0].role, flat.view(dtype))
        self._verified.add(name)
        return flat.view(dtype).view(parts[0].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _bytes(self, part: Part) -> Tensor:
        if part.nbytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=part.nbytes, offset=part.offset)


def read_parquet_weights(path: str | os.PathLike[str], verify: Verify = "touch") -> ParquetWeights:
    """Map a weight file into memory: names to tensors, without copying or reading their bytes.

    Args:
        path: the file. Tensors share its pages copy-on-write: writing to one never reaches the disk.
        verify: "header" checks the footer and, at first access, the page header of a tensor; "touch" adds CRC-32 of
            the tensor's bytes, finite positive scales and boolean values at first access; "full" checks every byte of
            the file now, also that the columns other programs read agree with the manifest.

    Raises:
        FormatError: whatever is wrong with the file's content, here or (verify="touch") at first access of a tensor.
        OSError: the file cannot be opened.

    Usage: `weights = read_parquet_weights("model.arrowquant.parquet"); weights["norm.weight"]`
    """
    if verify not in get_args(Verify):
        raise ValueError(f"verify must be one of {sorted(get_args(Verify))}, got {verify!r}")
    try:
        return ParquetWeights(path, verify)
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        # the decoder yields plain values of any type; comparing the wrong ones is a broken file, not a bug
        raise FormatError(f"malformed weight file: {type(error).__name__}: {error}") from None


def map_footer(path: str) -> tuple[mmap.mmap, Footer]:
    """Map a file and check its footer."""
    mapped = _map_file(path)
    start = _footer_start(mapped)
    return mapped, parse_footer(mapped[start:-8], start)


def _map_file(path: str) -> mmap.mmap:
    # O_NONBLOCK: opening a FIFO must not wait for a writer
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        require(stat.S_ISREG(status.st_mode), "weights must be a regular file")
        require(status.st_size >= 12, f"a Parquet file has at least 12 bytes, got {status.st_size}")
        # private and writable: an in-place write copies its page; PROT_READ alone would crash the process
        return mmap.mmap(descriptor, status.st_size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(descriptor)


def _footer_start(mapped: mmap.mmap) -> int:
    require(mapped[:4] == MAGIC and mapped[-4:] == MAGIC, "the file must start and end with PAR1")
    (length,) = struct.unpack("<I", mapped[-8:-4])
    allowed = min(MAX_FOOTER_BYTES, len(mapped) - 12)
    require(0 < length <= allowed, f"the footer must have 1..{allowed} bytes, got {length}")
    return len(mapped) - 8 - length


def _page(mapped: mmap.mmap, start: int, end: int, max_header_bytes: int) -> tuple[int, int]:
    """(start of the value bytes, CRC-32 the header states) of a data page that must fill start..end exactly."""
    decoder = ThriftDecoder(mapped[start : min(end, start + max_header_bytes)], budget=64)
    header = decoder.struct()
    body = start + decoder.position
    plain: Any = header.get(8)
    require(type(plain) is dict and set(plain) <= set(_ONE_PLAIN_VALUE) | {8}, "a page must be a data page V2")
    require(all(plain.get(key) == value for key, value in _ONE_PLAIN_VALUE.items()), "a page holds one plain value")
    require(set(header) == {1, 2, 3, 4, 8} and header[1] == _DATA_PAGE_V2, "a page must be a data page V2 with CRC")
    require(header[2] == header[3] == end - body, "a page must fill its chunk")
    require(type(header[4]) is int, "a page needs its CRC")
    return body, header[4] & 0xFFFFFFFF


def check_page(mapped: mmap.mmap, part: Part) -> None:
    """Check the page header and length prefix in front of a part's bytes."""
    body, crc32 = _page(mapped, part.page_offset, part.offset + part.nbytes, MAX_PAGE_HEADER_BYTES)
    (length,) = struct.unpack("<I", mapped[part.offset - 4 : part.offset])
    require(body + 4 == part.offset and length == part.nbytes, f"the value of {part.name!r} must fill its page")
    require(crc32 == part.crc32, f"page and manifest must agree on the CRC of {part.name!r}")


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


def _check_columns(mapped: mmap.mmap, footer: Footer) -> None:
    """The columns that other programs read must say what the manifest says."""
    end = 4
    for part, group in zip(footer.parts, footer.row_groups, strict=True):
        require(part.page_offset >= end, f"{part.name!r} overlaps its predecessor's columns")
        end = part.offset + part.nbytes
        shape = json.dumps(list(part.shape))
        values = (part.name, part.role, part.dtype, shape, struct.pack("<i", part.part), struct.pack("<q", part.nbytes))
        for index, value in enumerate(values, start=1):
            chunk = column_chunk(group, index)
            start, end = chunk[9], chunk[9] + chunk[7]
            require(part.offset + part.nbytes <= start < end <= len(mapped), "columns must follow their data")
            body, crc32 = _page(mapped, start, end, MAX_COLUMN_HEADER_BYTES)
            text = value.encode() if isinstance(value, str) else b""
            expected = value if isinstance(value, bytes) else struct.pack("<I", len(text)) + text
            require(
                mapped[body:end] == expected, f"column {COLUMNS[index][0]} of {part.name!r} must equal the manifest"
            )
            require(zlib.crc32(expected) == crc32, f"column {COLUMNS[index][0]} of {part.name!r} must match its CRC")


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
