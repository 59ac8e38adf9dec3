"""Thrift compact structs taken apart, changed and put together again: for forging footers and page headers.

A struct is {field id: (kind, value)}, a list (kind of elements, [values]). For files that pyarrow wrote, no others.
"""

from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, BINARY, LIST, STRUCT = 1, 2, 3, 4, 5, 6, 8, 9, 12
Struct = dict[int, tuple[int, Any]]


def varint(value: int) -> bytes:
    """Unsigned."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def zigzag(value: int) -> bytes:
    """Signed."""
    return varint((value << 1) ^ (value >> 63))


def encode(kind: int, value: Any) -> bytes:
    """Any value but a boolean field, whose value is its kind."""
    if kind in (I16, I32, I64):
        return zigzag(value)
    if kind == BINARY:
        return varint(len(value)) + value
    if kind == LIST:
        element, values = value
        head = (
            bytes([len(values) << 4 | element]) if len(values) < 15 else bytes([0xF0 | element]) + varint(len(values))
        )
        return head + b"".join(encode(element, item) for item in values)
    if kind == BYTE:
        return bytes([value])
    assert kind == STRUCT, kind
    out, last = bytearray(), 0
    for field, (field_kind, item) in sorted(value.items()):
        assert field - last < 16
        out.append(field - last << 4 | field_kind)
        last = field
        out += b"" if field_kind in (TRUE, FALSE) else encode(field_kind, item)
    return bytes(out) + b"\0"


def decode(data: bytes, position: int = 0, kind: int = STRUCT) -> tuple[Any, int]:
    """(value, position behind it)."""
    if kind in (TRUE, FALSE):
        return None, position
    if kind == BYTE:
        return data[position], position + 1
    if kind == STRUCT:
        fields: Struct = {}
        field = 0
        while header := data[position]:
            field += header >> 4
            value, position = decode(data, position + 1, header & 15)
            fields[field] = (header & 15, value)
        return fields, position + 1
    if kind == LIST:
        length, element, position = data[position] >> 4, data[position] & 15, position + 1
        if length == 15:
            length, position = _varint_at(data, position)
        values = []
        for _ in range(length):
            value, position = decode(data, position, element)
            values.append(value)
        return (element, values), position
    number, position = _varint_at(data, position)
    if kind == BINARY:
        return data[position : position + number], position + number
    return (number >> 1) ^ -(number & 1), position


def _varint_at(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[position] & 127) << shift
        position, shift = position + 1, shift + 7
        if data[position - 1] < 128:
            return value, position
