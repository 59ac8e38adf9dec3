"""Makers of broken weight files: edits of a good file, re-signed and re-sealed where they are to reach the checks."""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.quantization import thrift_editor as thrift

MANIFEST_KEY = b"arrowquant.manifest"
Edit = Callable[[dict[Any, Any]], object]


def split(data: bytes) -> tuple[bytes, bytes]:
    """(row groups with the leading magic, footer) of a Parquet file."""
    (length,) = struct.unpack("<I", data[-8:-4])
    return data[: -8 - length], data[-8 - length : -8]


def join(body: bytes, footer: bytes) -> bytes:
    return body + footer + struct.pack("<I", len(footer)) + b"PAR1"


def value_of(data: bytes, key: bytes) -> bytes:
    """A footer key's value, found by its bytes: the rest of the footer may be broken."""
    marker = bytes([thrift.BINARY | 16, len(key)]) + key + bytes([thrift.BINARY | 16])
    return thrift.decode(data, data.index(marker) + len(marker), thrift.BINARY)[0]


def manifest_text(data: bytes) -> bytes:
    return value_of(data, MANIFEST_KEY)


def with_manifest(data: bytes, text: bytes) -> bytes:
    """The file with another manifest, its sha256 made to match (the seal is left stale)."""
    body, footer = split(data)
    old = manifest_text(data)
    footer = footer.replace(thrift.varint(len(old)) + old, thrift.varint(len(text)) + text)
    footer = footer.replace(hashlib.sha256(old).hexdigest().encode(), hashlib.sha256(text).hexdigest().encode())
    return join(body, footer)


def resigned(data: bytes, edit: Edit) -> bytes:
    manifest = json.loads(manifest_text(data))
    edit(manifest)
    return with_manifest(data, json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())


def sealed(data: bytes) -> bytes:
    """The file with a seal that matches its present bytes: what a determined forger would hand over."""
    entries = json.loads(manifest_text(data))["tensors"]
    seal = value_of(data, b"arrowquant.seal")
    digest, position = hashlib.sha256(), 0
    zeroed = data.replace(seal, b"0" * 64)
    for entry in entries:
        digest.update(zeroed[position : entry["offset"]])
        position = entry["offset"] + entry["nbytes"]
    digest.update(zeroed[position:])
    return data.replace(seal, digest.hexdigest().encode())


def forged(data: bytes, edit: Edit) -> bytes:
    """Another manifest, with checksum and seal to match."""
    return sealed(resigned(data, edit))


def with_footer(data: bytes, edit: Edit) -> bytes:
    """Another thrift footer, sealed. The edit gets FileMetaData as `thrift_editor` decodes it."""
    body, footer = split(data)
    fields, _ = thrift.decode(footer)
    edit(fields)
    return sealed(join(body, thrift.encode(thrift.STRUCT, fields)))


def balanced(footer: thrift.Struct) -> None:
    """Make the sizes of row groups those of their chunks."""
    for group in footer[4][1][1]:
        total = sum(chunk[3][1][7][1] for chunk in group[1][1][1])
        group |= {2: (thrift.I64, total), 6: (thrift.I64, total)}


def with_footer_bytes(data: bytes, edit: Callable[[bytes], bytes]) -> bytes:
    """Another footer, sealed."""
    body, footer = split(data)
    return sealed(join(body, edit(footer)))


def row_group(footer: thrift.Struct, row: int) -> thrift.Struct:
    return footer[4][1][1][row]


def chunk(footer: thrift.Struct, row: int, column: int) -> thrift.Struct:
    """A ColumnChunk; its field 3 is the ColumnMetaData."""
    return row_group(footer, row)[1][1][1][column]


def column(footer: thrift.Struct, row: int, column: int) -> thrift.Struct:
    """A ColumnMetaData."""
    return chunk(footer, row, column)[3][1]


def with_page(data: bytes, row: int, index: int, edit: Edit) -> bytes:
    """Another page header of the same length, sealed."""
    footer, _ = thrift.decode(split(data)[1])
    start = column(footer, row, index)[9][1]
    header, end = thrift.decode(data, start)
    edit(header)
    changed = thrift.encode(thrift.STRUCT, header)
    assert len(changed) == end - start
    return sealed(data[:start] + changed + data[end:])


def with_value(data: bytes, row: int, index: int, edit: Callable[[bytes], bytes]) -> bytes:
    """Another value of a column, of the same length and with its CRC, sealed."""
    footer, _ = thrift.decode(split(data)[1])
    start, total = (column(footer, row, index)[field][1] for field in (9, 7))
    header, body = thrift.decode(data, start)
    value = edit(data[body : start + total])
    old, crc32 = header[4][1], zlib.crc32(value)
    header[4] = (thrift.I32, crc32 - (1 << 32) if crc32 >= 1 << 31 else crc32)
    page = thrift.encode(thrift.STRUCT, header) + value
    assert len(page) == total, (old, crc32)
    return sealed(data[:start] + page + data[start + total :])


def rewritten(data: bytes, table: pa.Table | None = None, **options: Any) -> bytes:
    """The same table (or another) and footer keys, written by pyarrow in another encoding."""
    table = pq.read_table(pa.BufferReader(data)) if table is None else table
    plain = {"use_dictionary": False, "compression": "NONE", "data_page_version": "2.0", "store_schema": False}
    sink = pa.BufferOutputStream()
    row_group_size = options.pop("row_group_size", 1)
    with pq.ParquetWriter(sink, table.schema, **{**plain, **options}) as writer:
        writer.write_table(table, row_group_size=row_group_size)
        writer.add_key_value_metadata(pq.ParquetFile(pa.BufferReader(data)).metadata.metadata)
    return sink.getvalue().to_pybytes()


def bomb(data: bytes, expanded_bytes: int) -> bytes:
    """A file of the same keys whose values are zeros, squeezed by zstd to a ten-thousandth of their size."""
    table = pq.read_table(pa.BufferReader(data)).slice(0, 1)
    zeros = pa.array([bytes(expanded_bytes)], pa.large_binary())
    table = table.set_column(0, table.schema.field(0).with_type(pa.large_binary()), zeros)
    return rewritten(data, table, compression="zstd", use_dictionary=True, dictionary_pagesize_limit=1 << 30)
