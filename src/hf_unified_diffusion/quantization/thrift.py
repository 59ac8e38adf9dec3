"""A strict decoder of the Thrift compact protocol, for bytes that nobody vouches for.

pyarrow's metadata parser aborts the process on some mutated footers; this one returns plain Python values or raises
FormatError. Work is bounded by a budget of decoded values, depth and the length of the input.
"""

from typing import Any

from .parquet_layout import FormatError

MAX_DEPTH = 12
MAX_FIELD_ID = 100
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
_INTEGERS = (_I32, _I64, _I16)


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
            return self._struct(0)
        except IndexError:
            raise FormatError("thrift data is truncated") from None

    def _struct(self, depth: int) -> dict[int, Any]:
        # the hot loop: a footer has a hundred fields per tensor, hence one-byte integers are read in place
        fields: dict[int, Any] = {}
        data, field_id = self.data, 0
        while True:
            header = data[self.position]
            self.position += 1
            if header == 0:
                self._spend(len(fields))
                return fields
            kind, delta = header & 15, header >> 4
            field_id = field_id + delta if delta else self._zigzag()
            if field_id in fields or not 0 < field_id <= MAX_FIELD_ID:
                raise FormatError(f"thrift field ids must be unique, in 1..{MAX_FIELD_ID}, got {field_id}")
            if kind in _INTEGERS and (value := data[self.position]) < 128:
                self.position += 1
                fields[field_id] = (value >> 1) ^ -(value & 1)
            else:
                fields[field_id] = kind == _TRUE if kind <= _FALSE else self._value(kind, depth)

    def _value(self, kind: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise FormatError(f"thrift data must stay within a depth of {MAX_DEPTH}")
        if kind in _INTEGERS:
            return self._zigzag()
        if kind == _BINARY:
            return self._binary(self._varint())
        if kind == _STRUCT:
            return self._struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth)
        if kind == _BYTE:
            self.position += 1
            return self.data[self.position - 1]
        if kind == _DOUBLE:
            self._binary(8)
            return None
        raise FormatError(f"thrift type must be one of the compact protocol's, got {kind}")

    def _spend(self, values: int) -> None:
        self.budget -= values
        if self.budget < 0:
            raise FormatError("thrift data must stay within its budget of values")

    def _list(self, depth: int) -> list[Any]:
        header = self.data[self.position]
        self.position += 1
        length, kind = header >> 4, header & 15
        if length == 15:
            length = self._varint()
        if length > len(self.data) - self.position:
            raise FormatError(f"a thrift list must fit in the footer, got {length} elements")
        self._spend(length)
        if kind in (_TRUE, _FALSE):
            return [self._value(_BYTE, depth) == _TRUE for _ in range(length)]
        return [self._value(kind, depth + 1) for _ in range(length)]

    def _binary(self, length: int) -> bytes:
        start = self.position
        if length > len(self.data) - start:
            raise FormatError(f"a thrift binary must fit in the footer, got {length} bytes")
        self.position = start + length
        return self.data[start : self.position]

    def _varint(self) -> int:
        data = self.data
        result = shift = 0
        while True:
            byte = data[self.position]
            self.position += 1
            result |= (byte & 127) << shift
            if byte < 128:
                return result
            shift += 7
            if shift > 63:
                raise FormatError("a thrift varint must fit in 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
