"""Whatever bytes a file holds, reading it gives the tensors that were written or a FormatError."""

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_unified_diffusion.quantization import FormatError, read_parquet_weights, write_parquet_weights
from hf_unified_diffusion.quantization.thrift import ThriftDecoder
from tests.quantization import hostile_weights as hostile


def read_all(path: Path, data: bytes, verify: str) -> dict[str, Tensor]:
    path.write_bytes(data)
    return dict(read_parquet_weights(path, verify=verify))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(
        torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first
    )


@pytest.fixture
def scratch() -> Path:
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
    path = folder / f"hostile-{os.getpid()}.parquet"
    yield path
    path.unlink(missing_ok=True)


FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "under 12 bytes": lambda data: b"PAR1\0\0PAR1",
    "wrong magic at the start": lambda data: b"PARE" + data[4:],
    "wrong magic at the end": lambda data: data[:-4] + b"PARE",
    "footer length 0": lambda data: data[:-8] + struct.pack("<I", 0) + b"PAR1",
    "footer length huge": lambda data: data[:-8] + struct.pack("<I", 2**32 - 1) + b"PAR1",
    "footer length of the whole file": lambda data: data[:-8] + struct.pack("<I", len(data)) + b"PAR1",
    "trailing bytes": lambda data: data + b"\0",
    "footer of zeros": lambda data: hostile.join(b"PAR1", b"\0" * 50),
    "footer of nested structs": lambda data: hostile.join(b"PAR1", b"\x1c" * 5000),
    "footer of nested lists": lambda data: hostile.join(b"PAR1", b"\x19" + b"\x19" * 5000),
    "V1 pages": lambda data: hostile.rewritten(data, data_page_version="1.0"),
    "dictionary pages": lambda data: hostile.rewritten(data, use_dictionary=True),
    "zstd": lambda data: hostile.rewritten(data, compression="zstd"),
    "snappy": lambda data: hostile.rewritten(data, compression="snappy"),
    "all rows in one group": lambda data: hostile.rewritten(data, row_group_size=100),
    "page statistics and no CRC": lambda data: hostile.rewritten(data),
    "bytes before the row groups": lambda data: b"PAR1" + data,
}


@pytest.mark.parametrize("verify", ["header", "touch", "full"])
@pytest.mark.parametrize("case", sorted(FILES))
def test_bad_files_are_refused(scratch: Path, small_file: Path, case: str, verify: str) -> None:
    with pytest.raises(FormatError):
        read_all(scratch, FILES[case](small_file.read_bytes()), verify)


def entry(index: int, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["tensors"][index].update(changes)


def repeat_first(manifest: dict[str, Any]) -> None:
    manifest["tensors"][1] = manifest["tensors"][0]


def drop_last(manifest: dict[str, Any]) -> None:
    manifest["tensors"].pop()


MANIFESTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "unknown version": lambda manifest: manifest.update(version=2),
    "version true": lambda manifest: manifest.update(version=True),
    "other alignment": lambda manifest: manifest.update(align=8),
    "tensors not a list": lambda manifest: manifest.update(tensors={}),
    "metadata not an object": lambda manifest: manifest.update(metadata=[]),
    "entry not an object": lambda manifest: manifest.update(tensors=[3] * len(manifest["tensors"])),
    "a row group too many": drop_last,
    "duplicate name": repeat_first,
    "name with control character": entry(0, name="layer\x00weight"),
    "name with direction override": entry(0, name="layer\u202eweight"),
    "name a number": entry(0, name=7),
    "unknown role": entry(0, role="spare"),
    "unknown dtype": entry(0, dtype="float4"),
    "dtype a list": entry(0, dtype=["uint8"]),
    "dtype of another size": entry(0, dtype="float32"),
    "shape of another size": entry(2, shape=[18]),
    "shape overflow": entry(2, shape=[2**32, 2**32]),
    "shape overflow hidden by a zero": entry(3, shape=[0, 2**40, 2**40]),
    "shape negative": entry(2, shape=[-17, -1]),
    "shape of floats": entry(2, shape=[17.0]),
    "shape of booleans": entry(2, shape=[17, True]),
    "shape of many dimensions": entry(2, shape=[17] + [1] * 50),
    "offset negative": entry(0, offset=-64),
    "offset past the footer": entry(0, offset=2**40),
    "offset misaligned": lambda manifest: manifest["tensors"][0].update(offset=manifest["tensors"][0]["offset"] + 1),
    "offset of the neighbour": lambda manifest: entry(0, offset=manifest["tensors"][1]["offset"])(manifest),
    "offset a float": lambda manifest: entry(0, offset=float(manifest["tensors"][0]["offset"]))(manifest),
    "offset a huge float": entry(0, offset=1e308),
    "nbytes huge": entry(0, nbytes=2**63),
    "nbytes negative": entry(0, nbytes=-1),
    "nbytes shorter": entry(0, nbytes=31),
    "part missing": entry(0, part=1),
    "crc of another": entry(0, crc32=0),
    "crc negative": entry(0, crc32=-1),
}


@pytest.mark.parametrize("verify", ["header", "touch"])
@pytest.mark.parametrize("case", sorted(MANIFESTS))
def test_resigned_hostile_manifests_are_refused(scratch: Path, small_file: Path, case: str, verify: str) -> None:
    with pytest.raises(FormatError):
        read_all(scratch, hostile.resigned(small_file.read_bytes(), MANIFESTS[case]), verify)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace(b'"version":1', b'"version":1,"version":1'),
        lambda text: text.replace(b'"version":1', b'"version":NaN'),
        lambda text: text.replace(b'"version":1', b'"version":' + b"9" * 10_000),
        lambda text: text.replace(b'"apache-2.0"', b"Infinity"),
        lambda text: text.replace(b'"apache-2.0"', b"[" * 100_000 + b"]" * 100_000),
        lambda text: text.replace(b'"apache-2.0"', b'"\xff"'),
        lambda text: text[:-1],
        lambda text: b"",
        lambda text: b"[]",
    ],
)
def test_hostile_json_is_refused(scratch: Path, small_file: Path, edit: Callable[[bytes], bytes]) -> None:
    data = small_file.read_bytes()
    with pytest.raises(FormatError):
        read_all(scratch, hostile.with_manifest(data, edit(hostile.manifest_text(data))), "touch")


def test_a_sealed_manifest_unlike_the_columns_is_found_by_full(scratch: Path, small_file: Path) -> None:
    renamed = hostile.sealed(hostile.resigned(small_file.read_bytes(), entry(2, name="norm.weighs")))
    assert "norm.weighs" in read_all(scratch, renamed, "touch")
    with pytest.raises(FormatError, match="column name"):
        read_all(scratch, renamed, "full")


def test_a_resigned_file_without_a_new_seal_is_found_by_full(scratch: Path, small_file: Path) -> None:
    data = hostile.resigned(small_file.read_bytes(), lambda manifest: manifest["metadata"].update(licence="none"))
    assert read_all(scratch, hostile.sealed(data), "full")
    with pytest.raises(FormatError, match="seal"):
        read_all(scratch, data, "full")


def test_every_truncation_is_refused(scratch: Path, small_file: Path) -> None:
    data = small_file.read_bytes()
    for length in range(len(data)):
        with pytest.raises(FormatError):
            read_all(scratch, data[:length], "header")


def test_full_finds_every_flipped_bit(scratch: Path) -> None:
    write_parquet_weights(scratch, {"weight": torch.arange(9.0)}, {"licence": "apache-2.0"})
    data = scratch.read_bytes()
    generator = random.Random(0)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1 << generator.randrange(8)
        with pytest.raises(FormatError):
            read_all(scratch, bytes(broken), "full")


def mutated(data: bytes, generator: random.Random) -> bytes:
    out = bytearray(data)
    footer_start = len(hostile.split(data)[0])
    for _ in range(generator.choice([1, 1, 1, 2, 4, 16])):
        low = generator.choice([0, footer_start, footer_start])
        position = min(generator.randrange(low, len(data)), len(out) - 1)
        kind = generator.randrange(5)
        if kind == 0:
            out[position] = generator.randrange(256)
        elif kind == 1:
            out[position] ^= 1 << generator.randrange(8)
        elif kind == 2:
            out[position] = generator.choice([0, 0x7F, 0x80, 0xFF])
        elif kind == 3:
            del out[position : position + generator.randrange(1, 9)]
        else:
            out[position:position] = generator.randbytes(generator.randrange(1, 9))
    return bytes(out)


def mutated_manifest(data: bytes, generator: random.Random) -> bytes:
    text = bytearray(hostile.manifest_text(data))
    for _ in range(generator.choice([1, 1, 2, 3, 6])):
        text[generator.randrange(len(text))] = generator.choice(b'{}[],:"0123456789-e.truefalsn \\')
    return hostile.with_manifest(data, bytes(text))


@pytest.mark.parametrize("mutate", [mutated, mutated_manifest])
@pytest.mark.parametrize("verify", ["touch", "full"])
def test_mutations_give_the_same_tensors_or_a_format_error(
    scratch: Path, small_file: Path, small_tensors: dict[str, Tensor], mutate: Any, verify: str
) -> None:
    data, generator = small_file.read_bytes(), random.Random(1)
    refused = 0
    for _ in range(400):
        try:
            read = read_all(scratch, mutate(data, generator), verify)
        except FormatError:
            refused += 1
        else:
            # a forged manifest may rename or reshape honestly stored bytes; only stored bytes are vouched for
            assert mutate is mutated_manifest or same(read, small_tensors)
    assert refused > 200


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 0.0, 1e-40])
@pytest.mark.parametrize("verify", ["touch", "full"])
def test_bad_scales_are_refused(tmp_path: Path, scale: float, verify: str) -> None:
    path = tmp_path / "weights.parquet"
    write_parquet_weights(path, {"s": torch.tensor([1.0, scale])}, roles={"s": "scale"})
    with pytest.raises(FormatError, match="scales"):
        dict(read_parquet_weights(path, verify=verify))


def test_booleans_that_are_neither_0_nor_1_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.parquet"
    write_parquet_weights(path, {"flag": torch.tensor([2, 1], dtype=torch.uint8)})
    data = hostile.resigned(path.read_bytes(), entry(0, dtype="bool"))
    with pytest.raises(FormatError, match="booleans"):
        read_all(path, data, "touch")


def test_only_regular_files_are_opened(tmp_path: Path, small_file: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(FormatError, match="regular file"):
            read_parquet_weights(path)
    (tmp_path / "link").symlink_to(small_file)
    assert len(read_parquet_weights(tmp_path / "link")) == 5
    with pytest.raises(FileNotFoundError):
        read_parquet_weights(tmp_path / "missing")


def test_a_parquet_file_of_another_kind_is_named_as_such(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "text.parquet")
    with pytest.raises(FormatError, match="column"):
        read_parquet_weights(tmp_path / "text.parquet")


def test_verify_is_one_of_three(small_file: Path) -> None:
    with pytest.raises(ValueError, match="verify must be one of"):
        read_parquet_weights(small_file, verify="some")


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"\x15\x02\x05\x02\x02\x00", "unique"),  # field 1, then field 1 once more
        (b"\x15" + b"\xff" * 12 + b"\x00", "64 bits"),
        (b"\x18\xff\xff\x03abc", "fit"),
        (b"\x19\xf3\xff\xff\x7f", "fit"),
        (b"\x1c" * 40, "depth"),
        (b"\x1d\x00", "type"),
        (b"\x15", "truncated"),
        (b"", "truncated"),
        (b"\x19\xf5\x64" + b"\x02" * 100 + b"\x00", "budget"),
    ],
)
def test_thrift_is_decoded_strictly(data: bytes, rule: str) -> None:
    with pytest.raises(FormatError, match=rule):
        ThriftDecoder(data, budget=50).struct()


def test_manifest_is_canonical_json(small_file: Path) -> None:
    text = hostile.manifest_text(small_file.read_bytes()).decode()
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text
