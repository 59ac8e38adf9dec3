"""A strict decoder of the Thrift compact protocol, for bytes that nobody vouches for.

pyarrow's metadata parser aborts the process on some mutated footers; this one returns plain Python values or raises
FormatError. Work is bounded by a budget of decoded values, depth and the length of the input.
"""

from typing import Any

from .parquet_layout import FormatError

MAX_DEPTH = 12
MAX_FIELD_ID = 100
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12


class ThriftDecoder:
    """Cursor over `data`; `struct()` decodes one struct into {field id: value}, binaries as bytes, doubles as None."""

    __slots__ = ("budget", "data", "position")

    def __init__(self, data: bytes, budget: int):
        self.data = data
        self.position = 0
        self.budget = budget

    def struct(self) -> dict[int, Any]:
        """Decode the struct at the cursor and move behind it; FormatError if it is anything else."""
        try:
            fields, self.position = self._struct(self.position, 0)
        except IndexError:
            raise FormatError("thrift data is truncated") from None
        return fields

    def _struct(self, i: int, depth: int) -> tuple[dict[int, Any], int]:
        # the hot loop: a footer has 170 values per tensor; positions are arguments and results, not attributes
        fields: dict[int, Any] = {}
        data, field_id = self.data, 0
        while header := data[i]:
            i += 1
            kind = header & 15
            if header > 15:
                field_id += header >> 4
            else:
                field_id, i = _zigzag(data, i)
            if field_id in fields or not 0 < field_id <= MAX_FIELD_ID:
                raise FormatError(f"thrift field ids must be unique, in 1..{MAX_FIELD_ID}, got {field_id}")
            if _I16 <= kind <= _I64:
                value = data[i]
                i += 1
                if value > 127:
                    value, i = read_varint(data, i - 1)
                fields[field_id] = (value >> 1) ^ -(value & 1)
            elif kind <= _FALSE:
                fields[field_id] = kind == _TRUE
            else:
                fields[field_id], i = self._value(kind, i, depth)
        self._spend(len(fields))
        return fields, i + 1

    def _value(self, kind: int, i: int, depth: int) -> tuple[Any, int]:
        if depth > MAX_DEPTH:
            raise FormatError(f"thrift data must stay within a depth of {MAX_DEPTH}")
        data = self.data
        if kind == _BINARY:
            return _binary(data, *read_varint(data, i))
        if kind == _STRUCT:
            return self._struct(i, depth + 1)
        if kind in (_LIST, _SET):
            return self._list(i, depth)
        if kind == _BYTE:
            return data[i], i + 1
        if kind == _DOUBLE:
            return None, _binary(data, 8, i)[1]
        if _I16 <= kind <= _I64:
            return _zigzag(data, i)
        raise FormatError(f"thrift type must be one of the compact protocol's, got {kind}")

    def _spend(self, values: int) -> None:
        self.budget -= values
        if self.budget < 0:
            raise FormatError("thrift data must stay within its budget of values")

    def _list(self, i: int, depth: int) -> tuple[list[Any], int]:
        header = self.data[i]
        i += 1
        length, kind = header >> 4, header & 15
        if length == 15:
            length, i = read_varint(self.data, i)
        if length > len(self.data) - i:
            raise FormatError(f"a thrift list must fit in the footer, got {length} elements")
        self._spend(length)
        if kind in (_TRUE, _FALSE):
            return [byte == _TRUE for byte in self.data[i : i + length]], i + length
        values = []
        for _ in range(length):
            value, i = self._value(kind, i, depth + 1)
            values.append(value)
        return values, i


def _binary(data: bytes, length: int, i: int) -> tuple[bytes, int]:
    if length > len(data) - i:
        raise FormatError(f"a thrift binary must fit in the footer, got {length} bytes")
    return data[i : i + length], i + length


def read_varint(data: bytes, i: int) -> tuple[int, int]:
    """(value, position behind it) of an unsigned varint; IndexError where the data end, FormatError beyond 64 bits."""
    result = shift = 0
    while (byte := data[i]) > 127:
        result |= (byte & 127) << shift
        shift += 7
        i += 1
        if shift > 63:
            raise FormatError("a thrift varint must fit in 64 bits")
    return result | byte << shift, i + 1


def _zigzag(data: bytes, i: int) -> tuple[int, int]:
    value, i = read_varint(data, i)
    return (value >> 1) ^ -(value & 1), i
