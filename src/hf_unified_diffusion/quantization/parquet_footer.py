"""Untrusted footer -> checked manifest. Every number is bounded before anything uses it (docs/parquet_format.md).

Reading tensors needs the manifest alone. It is found by its key, so that opening a file costs no walk through the
thrift structs; the seal vouches for those, and `verify="full"` compares them with the manifest (parquet_columns).
"""

import hashlib
import json
from dataclasses import dataclass
from math import prod
from typing import Any

from .parquet_layout import (
    ALIGN,
    DTYPES,
    MANIFEST_HASH_KEY,
    MANIFEST_KEY,
    MAX_DIMS,
    MAX_ELEMENTS,
    MAX_NAME_CHARACTERS,
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
from .thrift import read_varint

_BINARY_FIELD = b"\x18"  # thrift compact: the next field, a binary; no JSON text and no tensor name holds this byte


@dataclass(frozen=True)
class Footer:
    """What the manifest says, checked: parts in file order, the writer's metadata, and the keys as they stand."""

    start: int
    parts: tuple[Part, ...]
    metadata: dict[str, Any]
    keys: dict[str, bytes]

    @property
    def seal(self) -> bytes:
        """64 hexadecimal digits."""
        return self.keys[SEAL_KEY]

    @property
    def manifest_sha256(self) -> str:
        """What identifies the content: the manifest holds the CRC-32 of every part."""
        return self.keys[MANIFEST_HASH_KEY].decode()


def parse_footer(data: bytes, start: int) -> Footer:
    """Find and check the manifest in the footer of a file whose row groups end before byte `start`.

    Raises FormatError for anything that is not exactly the manifest of docs/parquet_format.md.
    """
    keys = {key: _value_of(data, key) for key in (MANIFEST_KEY, MANIFEST_HASH_KEY, SEAL_KEY)}
    digest = hashlib.sha256(keys[MANIFEST_KEY]).hexdigest().encode()
    require(digest == keys[MANIFEST_HASH_KEY], "the manifest must match its sha256")
    require(len(keys[SEAL_KEY]) == 64, "the footer needs a seal of 64 hexadecimal digits")
    manifest = _manifest(keys[MANIFEST_KEY])
    entries: list[Any] = manifest["tensors"]
    require(len(entries) <= MAX_ROW_GROUPS, f"at most {MAX_ROW_GROUPS} row groups are allowed, got {len(entries)}")
    parts = tuple(_part(entry, start) for entry in entries)
    _check_order(parts)
    _check_tensors(parts)
    return Footer(start, parts, manifest["metadata"], keys)


def _value_of(data: bytes, key: str) -> bytes:
    """The value of one footer key: a thrift struct of two binaries."""
    pair = _BINARY_FIELD + bytes([len(key)]) + key.encode() + _BINARY_FIELD
    if data.count(pair) != 1:
        raise FormatError(f"the footer needs the key {key!r} once: this is not an ArrowQuant weight file")
    begin = data.index(pair) + len(pair)
    try:
        length, begin = read_varint(data, begin)
    except IndexError:
        raise FormatError(f"the value of {key!r} must fit in the footer") from None
    require(length <= len(data) - begin, f"the value of {key!r} must fit in the footer")
    return data[begin : begin + length]


def strict_json(text: bytes, what: str) -> dict[str, Any]:
    """Decode a JSON object without duplicate keys, NaN or infinities; FormatError for anything else."""
    try:
        decoded = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the {what} must be JSON: {error}") from None
    require(type(decoded) is dict, f"the {what} must be a JSON object")
    return decoded


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    require(len(fields) == len(pairs), "JSON keys must be unique")
    return fields


def _no_constant(name: str) -> None:
    raise FormatError(f"JSON numbers must be finite, got {name}")


def _manifest(text: bytes) -> dict[str, Any]:
    manifest = strict_json(text, "manifest")
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


def _part(entry: Any, data_end: int) -> Part:
    require(type(entry) is dict, "manifest entries must be objects")
    name, role, dtype, shape = (entry.get(key) for key in ("name", "role", "dtype", "shape"))
    require(type(name) is str and 0 < len(name) <= MAX_NAME_CHARACTERS and name.isprintable(), "bad tensor name")
    if type(role) is not str or role not in ROLES:
        raise FormatError(f"role must be one of {sorted(ROLES)}, got {role!r:.40}")
    if type(dtype) is not str or dtype not in DTYPES:
        raise FormatError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r:.40}")
    require(role != "scale" or dtype in SCALE_DTYPES, f"scales must be one of {SCALE_DTYPES}, got {dtype!r:.40}")
    require(type(shape) is list and len(shape) <= MAX_DIMS, f"a shape has at most {MAX_DIMS} dimensions")
    require(all(type(size) is int and 0 <= size <= MAX_ELEMENTS for size in shape), f"bad shape of {name!r}")
    # empty dimensions count as one: torch multiplies the others into strides
    require(prod(max(size, 1) for size in shape) <= MAX_ELEMENTS, f"{name!r} has too many elements")
    offset = _integer(entry, "offset", 8, data_end)
    nbytes = _integer(entry, "nbytes", 0, MAX_VALUE_BYTES)
    require(offset % ALIGN == 0, f"values must be aligned to {ALIGN} bytes, got offset {offset}")
    require(offset + nbytes <= data_end, f"{name!r} must end before the footer")
    part = _integer(entry, "part", 0, MAX_ROW_GROUPS)
    crc32 = _integer(entry, "crc32", 0, (1 << 32) - 1)
    return Part(name, role, dtype, tuple(shape), part, offset, nbytes, crc32)


def _check_order(parts: tuple[Part, ...]) -> None:
    end = 4
    for part in parts:
        require(part.offset >= end + 4, f"{part.name!r} overlaps its predecessor")
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
