"""Untrusted Parquet footer -> checked list of parts. Every number is bounded before anything uses it."""

import hashlib
import json
from dataclasses import dataclass
from math import prod
from typing import Any

from .parquet_layout import (
    ALIGN,
    COLUMNS,
    DTYPES,
    MANIFEST_HASH_KEY,
    MANIFEST_KEY,
    MAX_DIMS,
    MAX_ELEMENTS,
    MAX_NAME_CHARACTERS,
    MAX_PAGE_HEADER_BYTES,
    MAX_ROW_GROUPS,
    MAX_VALUE_BYTES,
    ROLES,
    SCALE_DTYPES,
    SEAL_KEY,
    VERSION,
    FormatError,
    Part,
    require,
)
from .thrift import ThriftDecoder

_BYTE_ARRAY, _UNCOMPRESSED, _REQUIRED, _DICTIONARY_PAGE = 6, 0, 0, 11


@dataclass(frozen=True)
class Footer:
    """What the footer says, checked: parts in file order, metadata, seal, and the raw row groups for `full`."""

    parts: tuple[Part, ...]
    metadata: dict[str, Any]
    seal: bytes
    row_groups: list[dict[int, Any]]


def parse_footer(data: bytes, data_end: int) -> Footer:
    """Decode and check the thrift footer of a file whose row groups end before byte `data_end`.

    Raises FormatError for anything that is not exactly the layout of docs/parquet_format.md.
    """
    decoder = ThriftDecoder(data, budget=200 + 400 * MAX_ROW_GROUPS)
    fields = decoder.struct()
    require(decoder.position == len(data), "the footer must end where its length says")
    require(8 not in fields and 9 not in fields, "the file must not be encrypted")
    _check_schema(fields.get(2))
    keys = _key_values(fields.get(5))
    manifest = _manifest(keys)
    entries: list[Any] = manifest["tensors"]
    row_groups: Any = fields.get(4)
    require(type(row_groups) is list and len(row_groups) == len(entries), "one row group per manifest entry is needed")
    require(len(entries) <= MAX_ROW_GROUPS, f"at most {MAX_ROW_GROUPS} row groups are allowed, got {len(entries)}")
    require(fields.get(3) == len(entries), "the row count must equal the manifest's entries")
    parts = tuple(_part(entry, group, data_end) for entry, group in zip(entries, row_groups, strict=True))
    _check_order(parts)
    _check_tensors(parts)
    seal = keys.get(SEAL_KEY.encode(), b"")
    require(len(seal) == 64, "the footer needs a seal of 64 hexadecimal digits")
    return Footer(parts, manifest["metadata"], seal, row_groups)


def _check_schema(elements: Any) -> None:
    require(type(elements) is list and len(elements) == 1 + len(COLUMNS), f"the schema needs {len(COLUMNS)} columns")
    require(all(type(element) is dict for element in elements), "schema elements must be structs")
    require(elements[0].get(5) == len(COLUMNS), "the schema must be flat")
    for element, (name, physical_type) in zip(elements[1:], COLUMNS, strict=True):
        agrees = element.get(4) == name.encode() and element.get(1) == physical_type and element.get(3) == _REQUIRED
        require(agrees and 5 not in element, f"column {name} must be required, of physical type {physical_type}")


def _key_values(pairs: Any) -> dict[bytes, bytes]:
    require(type(pairs) is list, "the footer needs key-value metadata")
    keys: dict[bytes, bytes] = {}
    for pair in pairs:
        require(type(pair) is dict, "key-value metadata must be structs")
        key, value = pair.get(1), pair.get(2)
        require(type(key) is bytes and type(value) is bytes and key not in keys, "footer keys must be unique strings")
        keys[key] = value
    return keys


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require(len(dict(pairs)) == len(pairs), "manifest keys must be unique")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise FormatError(f"manifest numbers must be finite, got {name}")


def _manifest(keys: dict[bytes, bytes]) -> dict[str, Any]:
    text = keys.get(MANIFEST_KEY.encode())
    if text is None:
        raise FormatError(f"the footer needs the key {MANIFEST_KEY!r}: this is not an ArrowQuant weight file")
    digest = hashlib.sha256(text).hexdigest().encode()
    require(digest == keys.get(MANIFEST_HASH_KEY.encode()), "the manifest must match its sha256")
    try:
        manifest = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the manifest must be JSON: {error}") from None
    require(type(manifest) is dict, "the manifest must be a JSON object")
    version = manifest.get("version")
    require(type(version) is int and version == VERSION, f"the format version must be {VERSION}, got {version!r:.40}")
    require(manifest.get("align") == ALIGN, f"the alignment must be {ALIGN} bytes")
    require(type(manifest.get("tensors")) is list, "the manifest needs a list of tensors")
    require(type(manifest.get("metadata")) is dict, "the manifest needs a metadata object")
    return manifest


def _integer(entry: dict[str, Any], key: str, low: int, high: int) -> int:
    value = entry.get(key)
    if type(value) is not int or not low <= value <= high:
        raise FormatError(f"{key} must be an integer in {low}..{high}, got {value!r:.40}")
    return value


def _part(entry: Any, group: Any, data_end: int) -> Part:
    require(type(entry) is dict, "manifest entries must be objects")
    name, role, dtype, shape = (entry.get(key) for key in ("name", "role", "dtype", "shape"))
    require(type(name) is str and 0 < len(name) <= MAX_NAME_CHARACTERS and name.isprintable(), "bad tensor name")
    require(type(role) is str and role in ROLES, f"role must be one of {sorted(ROLES)}, got {role!r:.40}")
    require(type(dtype) is str and dtype in DTYPES, f"dtype must be one of {sorted(DTYPES)}, got {dtype!r:.40}")
    require(role != "scale" or dtype in SCALE_DTYPES, f"scales must be one of {SCALE_DTYPES}, got {dtype!r:.40}")
    require(type(shape) is list and len(shape) <= MAX_DIMS, f"a shape has at most {MAX_DIMS} dimensions")
    require(all(type(size) is int and 0 <= size <= MAX_ELEMENTS for size in shape), f"bad shape of {name!r}")
    # empty dimensions count as one: torch multiplies the others into strides
    require(prod(max(size, 1) for size in shape) <= MAX_ELEMENTS, f"{name!r} has too many elements")
    offset = _integer(entry, "offset", 8, data_end)
    nbytes = _integer(entry, "nbytes", 0, MAX_VALUE_BYTES)
    require(offset % ALIGN == 0, f"values must be aligned to {ALIGN} bytes, got offset {offset}")
    require(offset + nbytes <= data_end, f"{name!r} must end before the footer")
    page_offset = _page_offset(group, offset, nbytes)
    part = _integer(entry, "part", 0, MAX_ROW_GROUPS)
    crc32 = _integer(entry, "crc32", 0, (1 << 32) - 1)
    return Part(name, role, dtype, tuple(shape), part, offset, nbytes, crc32, page_offset)


def column_chunk(group: Any, index: int) -> dict[int, Any]:
    """The checked ColumnMetaData of one plain, uncompressed, one-value chunk."""
    columns: Any = group.get(1) if type(group) is dict else None
    require(type(columns) is list and len(columns) == len(COLUMNS), f"a row group needs {len(COLUMNS)} chunks")
    chunk = columns[index]
    metadata: Any = chunk.get(3) if type(chunk) is dict else None
    require(type(metadata) is dict, "a column chunk needs its metadata")
    name, physical_type = COLUMNS[index]
    plain = metadata.get(4) == _UNCOMPRESSED and metadata.get(5) == 1 and _DICTIONARY_PAGE not in metadata
    named = metadata.get(1) == physical_type and metadata.get(3) == [name.encode()]
    sized = type(metadata.get(7)) is int and metadata.get(6) == metadata.get(7) and type(metadata.get(9)) is int
    require(plain and named and sized and 1 not in chunk, f"chunk {name} must be one plain uncompressed value")
    return metadata


def _page_offset(group: Any, offset: int, nbytes: int) -> int:
    chunk = column_chunk(group, 0)
    require(group.get(3) == 1, "a row group holds one row")
    start, total = chunk[9], chunk[7]
    agrees = 4 <= start < offset and start + total == offset + nbytes and offset - start <= MAX_PAGE_HEADER_BYTES
    require(agrees, "footer and manifest must agree on offsets")
    return start


def _check_order(parts: tuple[Part, ...]) -> None:
    end = 4
    for part in parts:
        require(part.page_offset >= end, f"{part.name!r} overlaps its predecessor")
        end = part.offset + part.nbytes


def _check_tensors(parts: tuple[Part, ...]) -> None:
    tensors: dict[str, list[Part]] = {}
    for part in parts:
        tensors.setdefault(part.name, []).append(part)
    for name, group in tensors.items():
        first = group[0]
        alike = all((part.role, part.dtype, part.shape) == (first.role, first.dtype, first.shape) for part in group)
        require(alike, f"the parts of {name!r} must agree on role, dtype and shape")
        require([part.part for part in group] == list(range(len(group))), f"{name!r} has missing or duplicate parts")
        expected = prod(first.shape) * DTYPES[first.dtype].itemsize
        require(sum(part.nbytes for part in group) == expected, f"{name!r} needs {expected} bytes for its shape")
