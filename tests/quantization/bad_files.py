"""The files that a reader must refuse, each made of a good one by code, by the level that must refuse them.

UNSIGNED: whatever the level. MANIFESTS, PARTS, TEXTS: re-signed manifests that break a rule of their own, whatever the
level. TOUCHED: found when the tensor is touched. RELABELLED: forged manifests, found by "full". CONTRADICTIONS: forged
with every checksum right, so that our tensors are still those that were written, while another program would see
something else: found by "full".
"""

import struct
from collections.abc import Callable
from typing import Any

from tests.quantization import hostile_weights as hostile
from tests.quantization.thrift_editor import BINARY, I32, I64, LIST, STRUCT, TRUE, encode

Maker = Callable[[bytes], bytes]
LAYER, SCALE, NORM, EMPTY, STEP, FLAG = range(6)  # row groups of tests.quantization.small_weights
DATA, NAME, ROLE, DTYPE, SHAPE, PART, NBYTES = range(7)  # columns


def flipped(position: Callable[[bytes], int]) -> Maker:
    def flip(data: bytes) -> bytes:
        broken = bytearray(data)
        broken[position(data)] ^= 1
        return bytes(broken)

    return flip


def two_pages(data: bytes) -> bytes:
    return hostile.rewritten(data, row_group_size=100, data_page_size=1, write_batch_size=1)


def repeat_key(footer: Any) -> None:
    footer[5][1][1].append(footer[5][1][1][0])


UNSIGNED: dict[str, Maker] = {
    "empty": lambda data: b"",
    "under 12 bytes": lambda data: b"PAR1\0\0PAR1",
    "wrong magic at the start": lambda data: b"PARE" + data[4:],
    "wrong magic at the end": lambda data: data[:-4] + b"PARE",
    "footer length 0": lambda data: data[:-8] + struct.pack("<I", 0) + b"PAR1",
    "footer length huge": lambda data: data[:-8] + struct.pack("<I", 2**32 - 1) + b"PAR1",
    "footer length of the whole file": lambda data: data[:-8] + struct.pack("<I", len(data)) + b"PAR1",
    "trailing bytes": lambda data: data + b"\0",
    "trailing magic": lambda data: data + b"PAR1",
    "footer of zeros": lambda data: hostile.join(b"PAR1", b"\0" * 50),
    "deep nesting of structs": lambda data: hostile.join(b"PAR1", b"\x1c" * 5000),
    "deep nesting of lists": lambda data: hostile.join(b"PAR1", b"\x19" + b"\x19" * 5000),
    "V1 page": lambda data: hostile.rewritten(data, data_page_version="1.0"),
    "dictionary page": lambda data: hostile.rewritten(data, use_dictionary=True),
    "zstd": lambda data: hostile.rewritten(data, compression="zstd"),
    "zstd bomb": lambda data: hostile.bomb(data, 16 << 20),
    "snappy": lambda data: hostile.rewritten(data, compression="snappy"),
    "all rows in one group": lambda data: hostile.rewritten(data, row_group_size=100),
    "two pages in a chunk": two_pages,
    "no CRC": hostile.rewritten,
    "bytes before the row groups": lambda data: b"PAR1" + data,
    "manifest twice": lambda data: hostile.with_footer(data, repeat_key),
    "no manifest": lambda data: data.replace(b"arrowquant.manifest\x18", b"arrowquant.manifesto"),
    "forged length of the manifest": lambda data: data.replace(b".manifest\x18", b".manifest\x18\xff\xff\x7f"),
    "bit flip in the manifest": flipped(lambda data: data.index(b'"tensors"')),
    "bit flip in a page header": flipped(lambda data: data.index(b"\x15\x06") + 1),
    "bit flip in a column": flipped(lambda data: data.index(b"norm.weight")),
    "bit flip in the footer": flipped(lambda data: len(data) - 9),
}


def in_page(index: int, edit: hostile.Edit) -> Maker:
    return lambda data: hostile.with_page(data, NORM, index, edit)


def with_value(index: int, edit: Callable[[bytes], bytes]) -> Maker:
    return lambda data: hostile.with_value(data, NORM, index, edit)


def entry(index: int, **changes: Any) -> hostile.Edit:
    return lambda manifest: manifest["tensors"][index].update(changes)


def repeat_first(manifest: dict[str, Any]) -> None:
    manifest["tensors"][1] = manifest["tensors"][0]


def swap(manifest: dict[str, Any]) -> None:
    manifest["tensors"][:2] = manifest["tensors"][1::-1]


def misalign(manifest: dict[str, Any]) -> None:
    manifest["tensors"][LAYER]["offset"] += 1


def overlap(manifest: dict[str, Any]) -> None:
    manifest["tensors"][SCALE]["offset"] = manifest["tensors"][LAYER]["offset"]


def float_offset(manifest: dict[str, Any]) -> None:
    manifest["tensors"][LAYER]["offset"] *= 1.0


MANIFESTS: dict[str, hostile.Edit] = {
    "unknown version": lambda manifest: manifest.update(version=2),
    "version true": lambda manifest: manifest.update(version=True),
    "other alignment": lambda manifest: manifest.update(align=8),
    "tensors not a list": lambda manifest: manifest.update(tensors={}),
    "metadata not an object": lambda manifest: manifest.update(metadata=[]),
    "entry not an object": lambda manifest: manifest.update(tensors=[3] * len(manifest["tensors"])),
    "too many row groups": lambda manifest: manifest.update(tensors=[0] * 40_000),
    "duplicate name": repeat_first,
    "tensors out of order": swap,
    "overlap": overlap,
    "name with control character": entry(LAYER, name="layer\x00weight"),
    "name with direction override": entry(LAYER, name="layer\u202eweight"),
    "name a number": entry(LAYER, name=7),
    "name too long": entry(LAYER, name="a" * 513),
    "unknown role": entry(LAYER, role="spare"),
    "role a list": entry(LAYER, role=["dense"]),
    "unknown dtype": entry(LAYER, dtype="float4"),
    "dtype a list": entry(LAYER, dtype=["uint8"]),
    "dtype lie of another size": entry(LAYER, dtype="float32"),
    "scale of integers": entry(SCALE, dtype="int16"),
    "shape of another size": entry(NORM, shape=[18]),
    "shape overflow": entry(NORM, shape=[2**32, 2**32]),
    "shape overflow hidden by a zero": entry(EMPTY, shape=[0, 2**40, 2**40]),
    "shape negative": entry(NORM, shape=[-17, -1]),
    "shape of floats": entry(NORM, shape=[17.0]),
    "shape of booleans": entry(NORM, shape=[17, True]),
    "shape of many dimensions": entry(NORM, shape=[17] + [1] * 50),
    "offset negative": entry(LAYER, offset=-64),
    "offset past the footer": entry(LAYER, offset=2**40),
    "offset misaligned": misalign,
    "offset a float": float_offset,
    "offset a huge float": entry(LAYER, offset=1e308),
    "offset a huge integer": entry(LAYER, offset=10**4000),
    "nbytes huge": entry(LAYER, nbytes=2**63),
    "nbytes negative": entry(LAYER, nbytes=-1),
    "nbytes shorter": entry(LAYER, nbytes=31),
    "part missing": entry(LAYER, part=1),
    "part negative": entry(LAYER, part=-1),
    "crc negative": entry(LAYER, crc32=-1),
}
# of a file whose norm.weight has three parts: row groups 2, 3 and 4
PARTS: dict[str, hostile.Edit] = {
    "missing part": lambda manifest: manifest["tensors"].pop(NORM + 1),
    "duplicate part": entry(NORM + 1, part=0),
    "parts swapped": lambda manifest: (entry(NORM, part=1)(manifest), entry(NORM + 1, part=0)(manifest)),
    "parts of other dtypes": entry(NORM + 1, dtype="int32"),
}
TEXTS: dict[str, Maker] = {
    "duplicate JSON key": lambda text: text.replace(b'"version":1', b'"version":1,"version":1'),
    "NaN": lambda text: text.replace(b'"version":1', b'"version":NaN'),
    "huge number": lambda text: text.replace(b'"version":1', b'"version":' + b"9" * 10_000),
    "infinity": lambda text: text.replace(b'"apache-2.0"', b"Infinity"),
    "nested JSON": lambda text: text.replace(b'"apache-2.0"', b"[" * 100_000 + b"]" * 100_000),
    "not UTF-8": lambda text: text.replace(b'"apache-2.0"', b'"\xff"'),
    "half the JSON": lambda text: text[:-1],
    "no JSON": lambda text: b"",
    "a list": lambda text: b"[]",
}


TOUCHED: dict[str, Maker] = {
    "crc of another": lambda data: hostile.forged(data, entry(LAYER, crc32=0)),
    "bit flip in data": flipped(lambda data: 64),
    "length prefix of the data": with_value(DATA, lambda value: b"\x43" + value[1:]),
    "booleans of other bytes": lambda data: hostile.forged(data, entry(LAYER, dtype="bool")),
}
# forged manifests that say other things of honestly stored bytes
RELABELLED: dict[str, hostile.Edit] = {
    "renamed": entry(NORM, name="norm.weighs"),
    "dtype lie of the same size": entry(NORM, dtype="int32"),
    "shape of the same size": entry(NORM, shape=[17, 1]),
    "role": entry(NORM, role="outlier"),
    "last entry missing": lambda manifest: manifest["tensors"].pop(),
}


def metadata(row: int, index: int, **fields: tuple[int, Any]) -> Maker:
    """Fields f1, f2, ... of a ColumnMetaData changed."""
    changes = {int(name[1:]): value for name, value in fields.items()}
    return in_footer(lambda footer: hostile.column(footer, row, index).update(changes) or hostile.balanced(footer))


def in_chunk(row: int, index: int, field: int, value: tuple[int, Any]) -> Maker:
    return lambda data: hostile.with_footer(
        data, lambda footer: hostile.chunk(footer, row, index).update({field: value})
    )


def in_footer(edit: hostile.Edit) -> Maker:
    return lambda data: hostile.with_footer(data, edit)


def appended(tail: bytes) -> Maker:
    """Fields put before the footer's closing byte: long form, that is kind, zigzag field id, value."""
    return lambda data: hostile.with_footer_bytes(data, lambda footer: footer[:-1] + tail + b"\0")


def statistics(row: int, index: int, field: int, value: tuple[int, Any]) -> Maker:
    return in_footer(lambda footer: hostile.column(footer, row, index)[12][1].update({field: value}))


def hide_keys(footer: Any) -> None:
    """The bytes of the keys stand in `created_by`."""
    footer[6] = (BINARY, encode(*footer[5]))
    footer[5][1][1].clear()


def longer_chunk(footer: Any) -> None:
    """The chunk of `role` also holds the page of `dtype`."""
    total = sum(hostile.column(footer, NORM, index)[7][1] for index in (ROLE, DTYPE))
    hostile.column(footer, NORM, ROLE).update({6: (I64, total), 7: (I64, total)})
    hostile.balanced(footer)


def same_chunk(row: int, index: int, source: tuple[int, int]) -> Maker:
    """A chunk that lies where another one does."""

    def edit(footer: Any) -> None:
        fields = hostile.column(footer, *source)
        hostile.column(footer, row, index).update({field: fields[field] for field in (6, 7, 9)})
        hostile.balanced(footer)

    return in_footer(edit)


CONTRADICTIONS: dict[str, Maker] = {
    "codec 16": metadata(NORM, DATA, f4=(I32, 16)),
    "codec of a column nobody maps": metadata(NORM, SHAPE, f4=(I32, 6)),
    "sizes of a bomb": metadata(NORM, DATA, f6=(I64, 1 << 32)),
    "dictionary page in the footer": metadata(NORM, NAME, f11=(I64, 4)),
    "bloom filter": metadata(NORM, NAME, f14=(I64, 4)),
    "index page": metadata(NORM, NAME, f10=(I64, 4)),
    "dictionary encoding": metadata(NORM, NAME, f2=(LIST, (I32, [8]))),
    "two values in a chunk": metadata(NORM, NAME, f5=(I64, 2)),
    "two pages in a sealed chunk": in_footer(longer_chunk),
    "two pages counted": metadata(NORM, NAME, f13=(LIST, (STRUCT, [{1: (I32, 0), 2: (I32, 0), 3: (I32, 2)}]))),
    "another column's path": metadata(NORM, NAME, f3=(LIST, (BINARY, [b"role"]))),
    "another column's type": metadata(NORM, PART, f1=(I32, 2)),
    "offset of a chunk negative": metadata(NORM, NAME, f9=(I64, -4)),
    "offset of a chunk past the file": metadata(NORM, NAME, f9=(I64, 1 << 40)),
    "offset of the data elsewhere": metadata(NORM, DATA, f9=(I64, 4)),
    "chunk of another row": same_chunk(NORM, NAME, (LAYER, NAME)),
    "chunks overlap": same_chunk(NORM, ROLE, (NORM, NAME)),
    "value in another file": in_chunk(NORM, DATA, 1, (BINARY, b"../other.parquet")),
    "column index": in_chunk(NORM, NAME, 6, (I64, 4)),
    "chunk without metadata": in_footer(lambda footer: hostile.chunk(footer, NORM, NAME).pop(3)),
    "statistics of another name": statistics(NORM, NAME, 5, (BINARY, b"zorm.weight")),
    "statistics below the name": statistics(NORM, NAME, 6, (BINARY, b"a")),
    "statistics in the old fields": statistics(NORM, ROLE, 1, (BINARY, b"zero")),
    "statistics count a null": statistics(NORM, NAME, 3, (I64, 1)),
    "statistics of the data": metadata(NORM, DATA, f12=(STRUCT, {5: (BINARY, b""), 6: (BINARY, b"")})),
    "size statistics": metadata(NORM, NAME, f16=(STRUCT, {1: (I64, 12)})),
    "rows uncounted": in_footer(lambda footer: footer.update({3: (I64, 5)})),
    "row group of two rows": in_footer(lambda footer: hostile.row_group(footer, NORM).update({3: (I64, 2)})),
    "row group of another size": in_footer(lambda footer: hostile.row_group(footer, NORM).update({2: (I64, 1)})),
    "row groups swapped": in_footer(lambda footer: footer[4][1][1].reverse()),
    "row group missing": in_footer(lambda footer: footer[4][1][1].pop()),
    "column missing": in_footer(lambda footer: hostile.row_group(footer, NORM)[1][1][1].pop()),
    "schema with another name": in_footer(lambda footer: footer[2][1][1][2].update({4: (BINARY, b"mane")})),
    "schema with an optional column": in_footer(lambda footer: footer[2][1][1][2].update({3: (I32, 1)})),
    "schema with another kind": in_footer(lambda footer: footer[2][1][1][2].update({6: (I32, 4)})),
    "schema nested": in_footer(lambda footer: footer[2][1][1][2].update({5: (I32, 1)})),
    "encrypted": appended(b"\x0c\x10\x00"),
    "keys outside the key-value list": in_footer(hide_keys),
    "duplicate thrift field": appended(b"\x05\x02\x04"),
    "thrift field 0": appended(b"\x05\x00\x04"),
    "thrift field negative": appended(b"\x05\x01\x04"),
    "thrift type 13": appended(b"\x0d\x64"),
    "varint overflow": appended(b"\x05\x64" + b"\xff" * 12 + b"\x01"),
    "deep nesting in the footer": appended(b"\x0c\x64" + b"\x1c" * 2000),
    "forged length of a list": appended(b"\x09\x64\xf5\xff\xff\xff\x7f"),
    "forged length of a binary": appended(b"\x08\x64\xff\xff\xff\xff\x0f"),
    "bytes behind the footer's struct": lambda data: hostile.with_footer_bytes(data, lambda footer: footer + b"\0"),
    "V1 page in a sealed file": in_page(DATA, lambda page: page.update({1: (I32, 0)})),
    "page size not value size": in_page(DATA, lambda page: page.update({3: (I32, 71)})),
    "page of two values": in_page(NAME, lambda page: page[8][1].update({1: (I32, 2)})),
    "page with a null": in_page(NAME, lambda page: page[8][1].update({2: (I32, 1)})),
    "page compressed": in_page(NAME, lambda page: page[8][1].update({7: (TRUE, None)})),
    "page with another CRC": in_page(NAME, lambda page: page.update({4: (I32, page[4][1] ^ 1)})),
    "manifest unlike the column name": with_value(NAME, lambda value: value[:-1] + b"T"),
    "manifest unlike the column role": with_value(ROLE, lambda value: value[:4] + b"scale"),
    "manifest unlike the column dtype": with_value(DTYPE, lambda value: value[:-1] + b"6"),
    "manifest unlike the column shape": with_value(SHAPE, lambda value: value[:-2] + b"8]"),
    "manifest unlike the column part": with_value(PART, lambda value: b"\1\0\0\0"),
    "manifest unlike the column nbytes": with_value(NBYTES, lambda value: b"\1" + bytes(7)),
}
