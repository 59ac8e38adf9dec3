"""Constants and small laws of the ArrowQuant Parquet weight file (docs/parquet_format.md)."""

from dataclasses import dataclass

import torch

MAGIC = b"PAR1"
VERSION = 1
ALIGN = 64
MAX_PART_BYTES = 1 << 30
MAX_VALUE_BYTES = (1 << 31) - 64
MAX_FOOTER_BYTES = 64 << 20
MAX_ROW_GROUPS = 32767
MAX_SHARDS = 9999
MAX_NAME_CHARACTERS = 512
MAX_DIMS = 8
MAX_ELEMENTS = 1 << 48
# thrift header of a data page with its value's length prefix; other columns' headers also hold two to four bounds
MAX_PAGE_HEADER_BYTES = 96
MAX_COLUMN_HEADER_BYTES = 16 << 10

MANIFEST_KEY = "arrowquant.manifest"
MANIFEST_HASH_KEY = "arrowquant.manifest_sha256"
SEAL_KEY = "arrowquant.seal"

ROLES = frozenset({"dense", "packed", "scale", "zero", "codebook", "outlier"})
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "float8_e4m3fnuz": torch.float8_e4m3fnuz,
    "float8_e5m2fnuz": torch.float8_e5m2fnuz,
    "complex64": torch.complex64,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint64": torch.uint64,
    "uint32": torch.uint32,
    "uint16": torch.uint16,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
SCALE_DTYPES = ("float16", "bfloat16", "float32", "float64")
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# name, Parquet physical type (1 = INT32, 2 = INT64, 6 = BYTE_ARRAY); all required, `data` first
COLUMNS = (("data", 6), ("name", 6), ("role", 6), ("dtype", 6), ("shape", 6), ("part", 1), ("nbytes", 2))


class FormatError(ValueError):
    """The file is not a valid ArrowQuant Parquet weight file; the message names the broken rule."""


@dataclass(frozen=True)
class Part:
    """One row group: bytes `offset .. offset + nbytes` of the file hold part `part` of tensor `name`."""

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    part: int
    offset: int
    nbytes: int
    crc32: int


def require(condition: bool, rule: str) -> None:
    """Raise FormatError(rule) unless the condition holds."""
    if not condition:
        raise FormatError(rule)


def _zigzag_length(value: int) -> int:
    zigzag = ((value << 1) ^ (value >> 63)) & ((1 << 64) - 1)
    return max(1, (zigzag.bit_length() + 6) // 7)


def page_header_length(page_bytes: int, crc32: int) -> int:
    """Bytes of a thrift DATA_PAGE_V2 header with one value, no levels and no statistics (parquet.thrift)."""
    signed_crc = crc32 - (1 << 32) if crc32 >= 1 << 31 else crc32
    sizes = 2 * (1 + _zigzag_length(page_bytes))
    checksum = 1 + _zigzag_length(signed_crc)
    page_type, v2_field, v2_values, v2_uncompressed, stops = 2, 1, 6 * 2, 1, 2
    return page_type + sizes + checksum + v2_field + v2_values + v2_uncompressed + stops
