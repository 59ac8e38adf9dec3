"""Makers of broken weight files: edits of a good file, re-signed where the edit is to reach past the checksums."""

import hashlib
import json
import re
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST_KEY = b"arrowquant.manifest"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def split(data: bytes) -> tuple[bytes, bytes]:
    """(row groups with the leading magic, footer) of a Parquet file."""
    (length,) = struct.unpack("<I", data[-8:-4])
    return data[: -8 - length], data[-8 - length : -8]


def join(body: bytes, footer: bytes) -> bytes:
    return body + footer + struct.pack("<I", len(footer)) + b"PAR1"


def manifest_text(data: bytes) -> bytes:
    return pq.ParquetFile(pa.BufferReader(data)).metadata.metadata[MANIFEST_KEY]


def keys(data: bytes) -> dict[bytes, bytes]:
    return pq.ParquetFile(pa.BufferReader(data)).metadata.metadata


def with_manifest(data: bytes, text: bytes) -> bytes:
    """The file with another manifest, its sha256 made to match (the seal is left stale)."""
    body, footer = split(data)
    old = manifest_text(data)
    footer = footer.replace(_varint(len(old)) + old, _varint(len(text)) + text)
    footer = footer.replace(hashlib.sha256(old).hexdigest().encode(), hashlib.sha256(text).hexdigest().encode())
    return join(body, footer)


def resigned(data: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    manifest = json.loads(manifest_text(data))
    edit(manifest)
    return with_manifest(data, json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())


def sealed(data: bytes) -> bytes:
    """The file with a seal that matches its present bytes: what a determined forger would hand over."""
    entries = json.loads(manifest_text(data))["tensors"]
    seal = keys(data)[b"arrowquant.seal"]
    digest, position = hashlib.sha256(), 0
    zeroed = data.replace(seal, b"0" * 64)
    for entry in entries:
        digest.update(zeroed[position : entry["offset"]])
        position = entry["offset"] + entry["nbytes"]
    digest.update(zeroed[position:])
    return data.replace(seal, digest.hexdigest().encode())


def rewritten(data: bytes, **options: Any) -> bytes:
    """The same table and footer keys, written by pyarrow in another encoding."""
    table = pq.read_table(pa.BufferReader(data))
    plain = {"use_dictionary": False, "compression": "NONE", "data_page_version": "2.0", "store_schema": False}
    sink = pa.BufferOutputStream()
    row_group_size = options.pop("row_group_size", 1)
    with pq.ParquetWriter(sink, table.schema, **{**plain, **options}) as writer:
        writer.write_table(table, row_group_size=row_group_size)
        writer.add_key_value_metadata(keys(data))
    return sink.getvalue().to_pybytes()


def offsets_in(data: bytes, name: str) -> tuple[int, int]:
    """(first byte, number of bytes) of a tensor's first part."""
    found = re.search(rb'"name":"%b","nbytes":(\d+),"offset":(\d+)' % name.encode(), manifest_text(data))
    assert found is not None
    return int(found[2]), int(found[1])
