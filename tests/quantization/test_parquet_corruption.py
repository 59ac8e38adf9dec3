"""Whatever bytes a file holds, reading it gives the tensors that were written or a FormatError."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_unified_diffusion.quantization import FormatError, read_parquet_weights, write_parquet_weights
from hf_unified_diffusion.quantization.thrift import ThriftDecoder
from tests.quantization import bad_files
from tests.quantization import hostile_weights as hostile
from tests.quantization import thrift_editor as thrift
from tests.quantization.small_weights import same


def read_all(path: Path, data: bytes, verify: str) -> dict[str, Tensor]:
    path.write_bytes(data)
    return dict(read_parquet_weights(path, verify=verify))


@pytest.fixture
def scratch() -> Iterator[Path]:
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
    path = folder / f"hostile-{os.getpid()}.parquet"
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("verify", ["header", "touch", "full"])
@pytest.mark.parametrize("case", sorted(bad_files.UNSIGNED))
def test_bad_files_are_refused(scratch: Path, small_file: Path, case: str, verify: str) -> None:
    with pytest.raises(FormatError):
        read_all(scratch, bad_files.UNSIGNED[case](small_file.read_bytes()), verify)


def refused_for_its_manifest(scratch: Path, data: bytes) -> None:
    for verify in ("header", "touch", "full"):
        with pytest.raises(FormatError) as caught:
            read_all(scratch, data, verify)
        assert "seal" not in str(caught.value) and "sha256" not in str(caught.value)


@pytest.mark.parametrize("case", sorted(bad_files.MANIFESTS))
def test_resigned_hostile_manifests_are_refused(scratch: Path, small_file: Path, case: str) -> None:
    refused_for_its_manifest(scratch, hostile.resigned(small_file.read_bytes(), bad_files.MANIFESTS[case]))


@pytest.mark.parametrize("case", sorted(bad_files.PARTS))
def test_wrong_parts_are_refused(scratch: Path, parts_file: Path, case: str) -> None:
    refused_for_its_manifest(scratch, hostile.resigned(parts_file.read_bytes(), bad_files.PARTS[case]))


@pytest.mark.parametrize("case", sorted(bad_files.TEXTS))
def test_hostile_json_is_refused(scratch: Path, small_file: Path, case: str) -> None:
    data = small_file.read_bytes()
    text = bad_files.TEXTS[case](hostile.manifest_text(data))
    refused_for_its_manifest(scratch, hostile.with_manifest(data, text))


@pytest.mark.parametrize("verify", ["touch", "full"])
@pytest.mark.parametrize("case", sorted(bad_files.TOUCHED))
def test_wrong_values_are_found_when_they_are_touched(scratch: Path, small_file: Path, case: str, verify: str) -> None:
    data = bad_files.TOUCHED[case](small_file.read_bytes())
    assert len(read_all(scratch, data, "header")) == 6
    with pytest.raises(FormatError, match="CRC|booleans|fill its page|column dtype"):
        read_all(scratch, data, verify)


@pytest.mark.parametrize("case", sorted(bad_files.RELABELLED))
def test_a_sealed_manifest_unlike_the_columns_is_found_by_full(scratch: Path, small_file: Path, case: str) -> None:
    data = hostile.forged(small_file.read_bytes(), bad_files.RELABELLED[case])
    assert len(read_all(scratch, data, "touch")) >= 5
    with pytest.raises(FormatError, match=r"column \w+ of|one row group per"):
        read_all(scratch, data, "full")


@pytest.mark.parametrize("case", sorted(bad_files.CONTRADICTIONS))
def test_what_other_programs_would_misread_is_found_by_full(
    scratch: Path, small_file: Path, small_tensors: dict[str, Tensor], case: str
) -> None:
    data = bad_files.CONTRADICTIONS[case](small_file.read_bytes())
    assert same(read_all(scratch, data, "touch"), small_tensors)
    with pytest.raises(FormatError) as caught:
        read_all(scratch, data, "full")
    assert "seal" not in str(caught.value)


def test_the_forger_of_these_tests_changes_only_what_it_says(
    scratch: Path, small_file: Path, small_tensors: dict[str, Tensor]
) -> None:
    data = small_file.read_bytes()
    footer = hostile.split(data)[1]
    assert thrift.encode(thrift.STRUCT, thrift.decode(footer)[0]) == footer
    assert hostile.sealed(data) == hostile.with_footer(data, lambda footer: None) == data
    assert same(read_all(scratch, hostile.forged(data, lambda manifest: None), "full"), small_tensors)
    assert (
        hostile.with_value(data, 2, 1, lambda value: value) == hostile.with_page(data, 2, 0, lambda page: None) == data
    )


@pytest.mark.parametrize("verify", ["header", "touch", "full"])
def test_a_resigned_file_without_a_new_seal_is_refused(scratch: Path, small_file: Path, verify: str) -> None:
    data = hostile.resigned(small_file.read_bytes(), lambda manifest: manifest["metadata"].update(licence="none"))
    assert read_all(scratch, hostile.sealed(data), verify)
    with pytest.raises(FormatError, match="seal"):
        read_all(scratch, data, verify)


def test_every_truncation_is_refused(scratch: Path, small_file: Path) -> None:
    data = small_file.read_bytes()
    for length in range(len(data)):
        with pytest.raises(FormatError):
            read_all(scratch, data[:length], "header")


def test_full_finds_every_flipped_bit(scratch: Path) -> None:
    write_parquet_weights(scratch, {"weight": torch.arange(9.0)}, {"licence": "apache-2.0"})
    data = scratch.read_bytes()
    broken = bytearray(data)
    for position in range(len(data)):
        for bit in range(8):
            broken[position] = data[position] ^ 1 << bit
            with pytest.raises(FormatError):
                read_all(scratch, bytes(broken), "full")
        broken[position] = data[position]
    assert read_all(scratch, bytes(broken), "full")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 0.0, 1e-40])
@pytest.mark.parametrize("verify", ["touch", "full"])
def test_bad_scales_are_refused(tmp_path: Path, scale: float, verify: str) -> None:
    path = tmp_path / "weights.parquet"
    write_parquet_weights(path, {"s": torch.tensor([1.0, scale])}, roles={"s": "scale"})
    with pytest.raises(FormatError, match="scales"):
        dict(read_parquet_weights(path, verify=verify))


def test_only_regular_files_are_opened(tmp_path: Path, small_file: Path) -> None:
    os.mkfifo(tmp_path / "fifo.index.json")
    (tmp_path / "link to a fifo").symlink_to(tmp_path / "fifo.index.json")
    odd = (tmp_path, tmp_path / "fifo.index.json", tmp_path / "link to a fifo", Path("/dev/null"), Path("/dev/zero"))
    for path in odd:
        with pytest.raises(FormatError, match="regular file"):
            read_parquet_weights(path)
    (tmp_path / "link").symlink_to(small_file)
    assert len(read_parquet_weights(tmp_path / "link")) == 6
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for path in (tmp_path / "missing", tmp_path / "round"):
        with pytest.raises(OSError, match="No such file|symbolic links"):
            read_parquet_weights(path)


def test_a_parquet_file_of_another_kind_is_named_as_such(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "text.parquet")
    with pytest.raises(FormatError, match="not an ArrowQuant weight file"):
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
        (b"\x19" * 40, "depth"),
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
