"""Crash-safe writer of ArrowQuant Parquet weight files, on pyarrow (docs/parquet_format.md)."""

import contextlib
import hashlib
import io
import json
import os
import secrets
import struct
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from .parquet_columns import check_columns
from .parquet_layout import (
    ALIGN,
    DTYPE_NAMES,
    MANIFEST_HASH_KEY,
    MANIFEST_KEY,
    MAX_DIMS,
    MAX_FOOTER_BYTES,
    MAX_NAME_CHARACTERS,
    MAX_ROW_GROUPS,
    MAX_VALUE_BYTES,
    ROLES,
    SCALE_DTYPES,
    SEAL_KEY,
    VERSION,
    page_header_length,
)
from .parquet_reader import compute_seal, map_footer
from .thrift import ThriftDecoder

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetWriter


def write_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    roles: Mapping[str, str],
    max_part_bytes: int,
) -> str:
    """Write one file, whole or not at all; returns the SHA-256 of its manifest. See `write_parquet_weights`."""
    path = os.fspath(path)
    if not 0 < max_part_bytes <= MAX_VALUE_BYTES:
        raise ValueError(f"max_part_bytes must be in 1..{MAX_VALUE_BYTES}, got {max_part_bytes}")
    _check_names(list(tensors), roles)
    temporary = f"{path}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "r+b") as file:
            _write(file, tensors, roles, metadata, max_part_bytes)
            file.flush()
            digest = _seal(file, temporary)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_path(os.path.dirname(os.path.abspath(path)))
    return digest


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata as a dict; ValueError unless it is finite JSON."""
    try:
        json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be finite JSON, got {error}") from None
    return dict(metadata)


def _check_names(names: list[str], roles: Mapping[str, str]) -> None:
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
            raise ValueError(f"tensor names must be 1..{MAX_NAME_CHARACTERS} printable characters, got {name!r:.80}")
    for name, role in roles.items():
        if role not in ROLES:
            raise ValueError(f"role must be one of {sorted(ROLES)}, got {role!r} for {name!r}")


def _tensor_bytes(name: str, role: str, tensor: Tensor) -> memoryview:
    if tensor.dtype not in DTYPE_NAMES:
        raise ValueError(f"dtype must be one of {sorted(DTYPE_NAMES.values())}, got {tensor.dtype} for {name!r}")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(f"tensors must be dense and hold data, got {tensor.layout} on {tensor.device} for {name!r}")
    if tensor.dim() > MAX_DIMS:
        raise ValueError(f"tensors must have at most {MAX_DIMS} dimensions, got {tensor.dim()} for {name!r}")
    if role == "scale" and DTYPE_NAMES[tensor.dtype] not in SCALE_DTYPES:
        raise ValueError(f"scales must be one of {SCALE_DTYPES}, got {tensor.dtype} for {name!r}")
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().view(-1)
    # numpy shares the tensor's memory; its stub of the buffer protocol needs Python 3.12
    buffer: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return memoryview(buffer)


def _split(data: memoryview, max_part_bytes: int) -> Iterator[memoryview]:
    for start in range(0, max(1, len(data)), max_part_bytes):
        yield data[start : start + max_part_bytes]


def _write(
    file: BinaryIO,
    tensors: Mapping[str, Tensor],
    roles: Mapping[str, str],
    metadata: Mapping[str, Any],
    max_part_bytes: int,
) -> None:
    sink = _Sink(file)
    try:
        writer, entries = _open_writer(sink), []
        for name, tensor in tensors.items():
            role = roles.get(name, "dense")
            values = _tensor_bytes(name, role, tensor)
            fields = {"name": name, "role": role, "dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape)}
            for index, data in enumerate(_split(values, max_part_bytes)):
                entries.append(_write_part(writer, sink, {**fields, "part": index, "nbytes": len(data)}, data))
        if len(entries) > MAX_ROW_GROUPS:
            raise ValueError(f"a file holds at most {MAX_ROW_GROUPS} tensor parts, got {len(entries)}")
        writer.add_key_value_metadata(_footer_keys(entries, metadata))
        writer.close()
    finally:
        sink.file = None  # pyarrow closes the writer once more when it is collected


def _footer_keys(entries: list[dict[str, Any]], metadata: Mapping[str, Any]) -> dict[str, str]:
    fields = {"align": ALIGN, "metadata": metadata, "tensors": entries, "version": VERSION}
    manifest = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    if len(manifest) > MAX_FOOTER_BYTES // 2:
        raise ValueError(f"metadata and names must fit in {MAX_FOOTER_BYTES // 2} bytes, got {len(manifest)}")
    digest = hashlib.sha256(manifest.encode()).hexdigest()
    placeholder = hashlib.sha256(f"seal of {digest}".encode()).hexdigest()
    return {MANIFEST_KEY: manifest, MANIFEST_HASH_KEY: digest, SEAL_KEY: placeholder}


class _Sink(io.RawIOBase):
    """A file that pyarrow may close without closing ours, and that knows its position."""

    def __init__(self, file: BinaryIO):
        import pyarrow as pa

        self.file: BinaryIO | None = file
        self.position = 0
        self.handle = pa.PythonFile(self, mode="w")

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def write(self, data: Any) -> int:
        if self.file is not None:
            self.file.write(data)
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        pass


def _schema() -> Any:
    import pyarrow as pa

    kinds = {"data": pa.large_binary(), "part": pa.int32(), "nbytes": pa.int64()}
    names = ("data", "name", "role", "dtype", "shape", "part", "nbytes")
    return pa.schema([pa.field(name, kinds.get(name, pa.string()), nullable=False) for name in names])


def _open_writer(sink: _Sink) -> "ParquetWriter":
    from pyarrow.parquet import ParquetWriter

    return ParquetWriter(
        sink.handle,
        _schema(),
        version="2.6",
        data_page_version="2.0",
        compression="NONE",
        use_dictionary=False,
        column_encoding="PLAIN",
        write_batch_size=1,
        data_page_size=(1 << 31) - 1,
        write_page_checksum=True,
        write_statistics=["name", "role"],
        store_schema=False,
        write_page_index=False,
    )


def _write_batch(writer: "ParquetWriter", fields: Mapping[str, Any], data: memoryview) -> None:
    import pyarrow as pa

    offsets = pa.py_buffer(struct.pack("<qq", 0, len(data)))
    value = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])
    names = [[fields["name"]], [fields["role"]], [fields["dtype"]], [json.dumps(fields["shape"])]]
    columns = [value, *names, pa.array([fields["part"]], pa.int32()), pa.array([fields["nbytes"]], pa.int64())]
    writer.write_batch(pa.record_batch(columns, schema=_schema()), row_group_size=1)


def _write_part(writer: "ParquetWriter", sink: _Sink, fields: dict[str, Any], data: memoryview) -> dict[str, Any]:
    crc32 = zlib.crc32(data, zlib.crc32(struct.pack("<I", len(data))))
    header = page_header_length(len(data) + 4, crc32) + _extra_header_bytes() + 4
    # the gap goes through pyarrow's handle, so that pyarrow's own offsets count it
    sink.handle.write(b"\0" * (-(sink.position + header) % ALIGN))
    offset = sink.position + header
    _write_batch(writer, fields, data)
    return {**fields, "offset": offset, "crc32": crc32}


@cache
def _extra_header_bytes() -> int:
    """Bytes by which this pyarrow's page header exceeds the minimum (26.0 writes an empty Statistics struct)."""
    file = io.BytesIO()
    writer = _open_writer(_Sink(file))
    fields = {"name": "n", "role": "dense", "dtype": "uint8", "shape": [4], "part": 0, "nbytes": 4}
    _write_batch(writer, fields, memoryview(b"abcd"))
    writer.close()
    decoder = ThriftDecoder(file.getvalue()[4:], budget=64)
    header = decoder.struct()
    return decoder.position - page_header_length(header[3], header[4] & 0xFFFFFFFF)


def _seal(file: BinaryIO, temporary: str) -> str:
    """Read the file back by our own reader, put the seal over its placeholder; returns the manifest's SHA-256."""
    mapped, footer = map_footer(temporary)
    check_columns(mapped, footer)
    file.seek(mapped.rfind(footer.seal))
    file.write(compute_seal(mapped, footer))
    file.flush()
    return footer.manifest_sha256


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
