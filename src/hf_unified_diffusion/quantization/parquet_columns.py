"""`verify="full"`: what other programs read of a weight file must be what its manifest says.

Covers the thrift footer, the page header of every column, the columns' bytes with their CRC, and the statistics by
which a query engine skips row groups. Plain Python: pyarrow's own parser is no place for bytes that nobody vouches for.
"""

import json
import mmap
import struct
import zlib
from typing import Any

from .parquet_footer import Footer
from .parquet_layout import (
    COLUMNS,
    MAX_COLUMN_HEADER_BYTES,
    MAX_PAGE_HEADER_BYTES,
    MAX_ROW_GROUPS,
    Part,
    require,
)
from .thrift import ThriftDecoder

_BYTE_ARRAY, _UNCOMPRESSED, _REQUIRED, _DATA_PAGE, _DATA_PAGE_V2 = 6, 0, 0, 0, 3
_PLAIN, _RLE = 0, 3  # RLE: of the levels, which are empty
_TEXT_COLUMNS = ("name", "role", "dtype", "shape")
# ColumnChunk: file_path, offset index, column index, encryption; ColumnMetaData: key-values, index page, dictionary
# page, bloom filter. A reader that follows them could see other values than the manifest's.
_FORBIDDEN_IN_CHUNK, _FORBIDDEN_IN_METADATA = frozenset({1, 4, 5, 6, 7, 8, 9}), frozenset({8, 10, 11, 14, 15})
# DataPageHeaderV2: one value, no nulls, one row, PLAIN, no levels, not compressed; 8: statistics
_ONE_PLAIN_VALUE = {1: 1, 2: 0, 3: 1, 4: 0, 5: 0, 6: 0, 7: False}
Chunk = dict[int, Any]


def check_columns(mapped: mmap.mmap, footer: Footer) -> None:
    """Raise FormatError unless footer, pages, columns and statistics agree with the manifest."""
    decoder = ThriftDecoder(mapped[footer.start : -8], budget=200 + 400 * MAX_ROW_GROUPS)
    fields = decoder.struct()
    require(decoder.position == len(decoder.data), "the footer must end where its length says")
    require(8 not in fields and 9 not in fields, "the file must not be encrypted")
    _check_schema(fields.get(2))
    _check_keys(fields.get(5), footer)
    groups: Any = fields.get(4)
    require(type(groups) is list and len(groups) == len(footer.parts), "one row group per manifest entry is needed")
    require(fields.get(3) == len(groups), "the row count must equal the manifest's entries")
    end = 4
    for part, group in zip(footer.parts, groups, strict=True):
        end = _check_row_group(mapped, part, group, end)
    require(end <= footer.start, "row groups must end before the footer")


def _check_schema(elements: Any) -> None:
    require(type(elements) is list and len(elements) == 1 + len(COLUMNS), f"the schema needs {len(COLUMNS)} columns")
    require(all(type(element) is dict for element in elements), "schema elements must be structs")
    require(elements[0].get(5) == len(COLUMNS), "the schema must be flat")
    for element, (name, physical_type) in zip(elements[1:], COLUMNS, strict=True):
        agrees = element.get(4) == name.encode() and element.get(1) == physical_type and element.get(3) == _REQUIRED
        require(agrees and 5 not in element, f"column {name} must be required, of physical type {physical_type}")
        text = {6: 0, 10: {1: {}}} if name in _TEXT_COLUMNS else {}
        require({key: element[key] for key in (6, 10) if key in element} == text, f"column {name} has a wrong kind")


def _check_keys(pairs: Any, footer: Footer) -> None:
    require(type(pairs) is list and all(type(pair) is dict for pair in pairs), "the footer needs key-value metadata")
    names = [pair.get(1) for pair in pairs]
    for key, value in footer.keys.items():
        require(names.count(key.encode()) == 1, f"the footer needs the key {key!r} once")
        require(pairs[names.index(key.encode())].get(2) == value, f"the footer has another value of {key!r}")


def _check_row_group(mapped: mmap.mmap, part: Part, group: Any, end: int) -> int:
    """Check one part's columns, which start at or behind byte `end`; returns where they end."""
    require(type(group) is dict and group.get(3) == 1 and 4 not in group, "a row group holds one row")
    columns = group.get(1)
    require(type(columns) is list and len(columns) == len(COLUMNS), f"a row group needs {len(COLUMNS)} chunks")
    chunks = [_plain_chunk(columns[index], index) for index in range(len(COLUMNS))]
    total = sum(chunk[7] for chunk in chunks)
    # total_byte_size, total_compressed_size, file_offset
    sizes = group.get(2) == total and group.get(6, total) == total and group.get(5, chunks[0][9]) == chunks[0][9]
    require(sizes, f"the row group of {part.name!r} must have the sizes of its chunks")
    require(end <= chunks[0][9], f"the columns of {part.name!r} overlap their predecessors")
    _check_data_page(mapped, part, chunks[0])
    end = part.offset + part.nbytes
    for (name, _), chunk, value in zip(COLUMNS[1:], chunks[1:], _expected_values(part), strict=True):
        start, stop = chunk[9], chunk[9] + chunk[7]
        require(end <= start < stop <= len(mapped), f"column {name} of {part.name!r} must follow its predecessor")
        _check_value(mapped, chunk, name, value, part)
        end = stop
    return end


def _plain_chunk(chunk: Any, index: int) -> Chunk:
    """The checked ColumnMetaData of one plain, uncompressed, one-value chunk."""
    metadata: Any = chunk.get(3) if type(chunk) is dict else None
    require(type(metadata) is dict, "a column chunk needs its metadata")
    name, physical_type = COLUMNS[index]
    elsewhere = not _FORBIDDEN_IN_CHUNK.isdisjoint(chunk) or not _FORBIDDEN_IN_METADATA.isdisjoint(metadata)
    plain = metadata.get(4) == _UNCOMPRESSED and metadata.get(5) == 1 and set(metadata.get(2)) <= {_PLAIN, _RLE}
    named = metadata.get(1) == physical_type and metadata.get(3) == [name.encode()]
    sized = type(metadata.get(7)) is int and metadata.get(6) == metadata.get(7) and type(metadata.get(9)) is int
    require(plain and named and sized and not elsewhere, f"chunk {name} must be one plain uncompressed value")
    for counted in metadata.get(13, []):  # pages by kind and encoding; pyarrow names those of V2 as of V1
        kind, encoding, count = (counted.get(key) for key in (1, 2, 3))
        one_page = kind in (_DATA_PAGE, _DATA_PAGE_V2) and encoding == _PLAIN and count == len(metadata[13]) == 1
        require(one_page, f"chunk {name} must have one plain page")
    return metadata


def _page(mapped: mmap.mmap, chunk: Chunk, max_header_bytes: int) -> tuple[int, int, Any]:
    """(start of the value bytes, CRC-32 and statistics of its header) of the one data page that fills a chunk."""
    start, end = chunk[9], chunk[9] + chunk[7]
    decoder = ThriftDecoder(mapped[start : min(end, start + max_header_bytes)], budget=64)
    header = decoder.struct()
    body = start + decoder.position
    plain: Any = header.get(8)
    require(type(plain) is dict and set(plain) <= set(_ONE_PLAIN_VALUE) | {8}, "a page must be a data page V2")
    require(all(plain.get(key) == value for key, value in _ONE_PLAIN_VALUE.items()), "a page holds one plain value")
    require(set(header) == {1, 2, 3, 4, 8} and header[1] == _DATA_PAGE_V2, "a page must be a data page V2 with CRC")
    require(header[2] == header[3] == end - body, "a page must fill its chunk")
    require(type(header[4]) is int, "a page needs its CRC")
    return body, header[4] & 0xFFFFFFFF, plain.get(8, {})


def _check_data_page(mapped: mmap.mmap, part: Part, chunk: Chunk) -> None:
    start, total = chunk[9], chunk[7]
    agrees = 4 <= start < part.offset and start + total == part.offset + part.nbytes
    agrees = agrees and part.offset - start <= MAX_PAGE_HEADER_BYTES
    require(agrees, f"footer and manifest must agree on the offsets of {part.name!r}")
    body, crc32, statistics = _page(mapped, chunk, MAX_PAGE_HEADER_BYTES)
    (length,) = struct.unpack("<I", mapped[part.offset - 4 : part.offset])
    require(body + 4 == part.offset and length == part.nbytes, f"the value of {part.name!r} must fill its page")
    require(crc32 == part.crc32, f"page and manifest must agree on the CRC of {part.name!r}")
    bounded = {*statistics, *chunk.get(12, {})} & {1, 2, 5, 6}
    require(not bounded, f"the data of {part.name!r} must have no bounds in its statistics")
    _check_statistics(statistics, chunk, b"", part.nbytes, f"data of {part.name!r}")


def _expected_values(part: Part) -> tuple[bytes, ...]:
    """The values of the columns behind `data`."""
    texts = (part.name, part.role, part.dtype, json.dumps(list(part.shape)))
    return (*(text.encode() for text in texts), struct.pack("<i", part.part), struct.pack("<q", part.nbytes))


def _check_value(mapped: mmap.mmap, chunk: Chunk, name: str, value: bytes, part: Part) -> None:
    what = f"column {name} of {part.name!r}"
    body, crc32, statistics = _page(mapped, chunk, MAX_COLUMN_HEADER_BYTES)
    expected = struct.pack("<I", len(value)) + value if name in _TEXT_COLUMNS else value
    require(mapped[body : chunk[9] + chunk[7]] == expected, f"{what} must equal the manifest")
    require(zlib.crc32(expected) == crc32, f"{what} must match its CRC")
    _check_statistics(statistics, chunk, value, len(value), what)


def _check_statistics(in_page: Any, chunk: Chunk, value: bytes, nbytes: int, what: str) -> None:
    """Bounds must be the value itself, counts those of one value: engines skip row groups by them."""
    allowed = {1: value, 2: value, 3: 0, 4: 1, 5: value, 6: value, 7: True, 8: True}
    for statistics in (in_page, chunk.get(12, {})):
        require(type(statistics) is dict, f"the statistics of the {what} must be a struct")
        true = all(key in allowed and found == allowed[key] for key, found in statistics.items())
        require(true, f"the statistics of the {what} must be those of its value")
    sizes = chunk.get(16, {})
    require(sizes.get(1, nbytes) == nbytes, f"the size statistics of the {what} must be those of its value")
