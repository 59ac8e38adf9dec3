"""Laws of the weight file: what is written is read, without copies, by us and by any Parquet reader, or not at all."""

import json
import resource
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_unified_diffusion.quantization import read_parquet_weights, write_parquet_weights
from hf_unified_diffusion.quantization.parquet_layout import DTYPES
from tests.quantization.mapped import lies_in_a_mapping_of


def tensor_bytes(tensor: Tensor) -> bytes:
    return b"" if tensor.numel() == 0 else tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(st.lists(st.integers(0, 5), max_size=4) | st.lists(st.integers(1, 2), max_size=8))
    numel = torch.empty(shape).numel()
    raw = bytearray(draw(st.binary(min_size=numel * dtype.itemsize, max_size=numel * dtype.itemsize)))
    flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    return flat.remainder(2).bool().view(shape) if dtype == torch.bool else flat.view(dtype).view(shape)


NAMES = st.text(min_size=1, max_size=512).filter(str.isprintable)


def named_tensors() -> st.SearchStrategy[dict[str, Tensor]]:
    """Up to five tensors of any dtype and shape under any names the format allows."""
    return st.dictionaries(NAMES, tensors(), max_size=5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=named_tensors(), part=st.integers(1, 200))
def test_every_dtype_and_shape_is_restored_bit_for_bit(tmp_path: Path, drawn: dict[str, Tensor], part: int) -> None:
    path = tmp_path / "weights.parquet"
    write_parquet_weights(path, drawn, {"names": list(drawn)}, max_part_bytes=part)
    weights = read_parquet_weights(path, verify="full")
    assert list(weights) == list(drawn) == weights.metadata["names"]
    for name, tensor in drawn.items():
        assert (weights[name].dtype, weights[name].shape) == (tensor.dtype, tensor.shape)
        assert tensor_bytes(weights[name]) == tensor_bytes(tensor)


@pytest.mark.parametrize("verify", ["header", "touch", "full"])
def test_tensors_lie_aligned_inside_one_mapping_of_the_file(small_file: Path, verify: str) -> None:
    weights = read_parquet_weights(small_file, verify=verify)
    for name, tensor in weights.items():
        assert tensor.numel() == 0 or lies_in_a_mapping_of(small_file, tensor), name
    assert not lies_in_a_mapping_of(small_file, weights["norm.weight"].clone())


def test_writing_into_a_tensor_leaves_the_file_alone(small_file: Path) -> None:
    before = small_file.read_bytes()
    read_parquet_weights(small_file)["norm.weight"].zero_()
    assert small_file.read_bytes() == before
    assert read_parquet_weights(small_file)["norm.weight"].abs().sum() > 0


def test_tensors_outlive_the_mapping_object_and_the_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.parquet"
    write_parquet_weights(path, {"a": torch.arange(1000)})
    tensor = read_parquet_weights(path)["a"]
    path.unlink()
    assert torch.equal(tensor, torch.arange(1000))


def test_pyarrow_reads_the_same_bytes_and_columns(small_file: Path, small_tensors: dict[str, Tensor]) -> None:
    rows = pq.read_table(small_file).to_pylist()
    weights = read_parquet_weights(small_file)
    assert [row["name"] for row in rows] == list(small_tensors)
    for row in rows:
        tensor = small_tensors[row["name"]]
        assert row["data"] == tensor_bytes(tensor)
        assert (row["dtype"], json.loads(row["shape"])) == (str(tensor.dtype).split(".")[1], list(tensor.shape))
        assert (row["role"], row["part"], row["nbytes"]) == (weights.roles[row["name"]], 0, len(row["data"]))


def test_pages_are_plain_uncompressed_v2_one_row_group_a_part(
    small_file: Path, small_tensors: dict[str, Tensor]
) -> None:
    file = pq.ParquetFile(small_file, page_checksum_verification=True)
    assert file.metadata.num_row_groups == len(small_tensors)
    for group in range(file.metadata.num_row_groups):
        column = file.metadata.row_group(group).column(0)
        assert (column.path_in_schema, column.compression) == ("data", "UNCOMPRESSED")
        assert set(column.encodings) <= {"PLAIN", "RLE"}  # RLE: of the levels, which are empty
        assert column.dictionary_page_offset is None
    assert file.read().num_rows == len(small_tensors)


def test_equal_input_gives_equal_bytes(tmp_path: Path, small_file: Path, small_tensors: dict[str, Tensor]) -> None:
    roles = {"layer.weight": "packed", "layer.weight_scale": "scale"}
    write_parquet_weights(tmp_path / "again.parquet", small_tensors, {"licence": "apache-2.0"}, roles=roles)
    assert (tmp_path / "again.parquet").read_bytes() == small_file.read_bytes()


def test_header_reads_no_tensor_bytes(tmp_path: Path) -> None:
    path = tmp_path / "weights.parquet"
    write_parquet_weights(path, {"a": torch.zeros(1 << 16)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert read_parquet_weights(path, verify="header")["a"].count_nonzero() == 1
    with pytest.raises(ValueError, match="CRC"):
        read_parquet_weights(path, verify="touch")["a"]


@pytest.mark.parametrize(
    ("tensors", "options", "rule"),
    [
        ({"": torch.ones(1)}, {}, "printable"),
        ({"a\n": torch.ones(1)}, {}, "printable"),
        ({"a" * 513: torch.ones(1)}, {}, "512"),
        ({"a": torch.ones(1, device="meta")}, {}, "hold data"),
        ({"a": torch.ones(1).to_sparse()}, {}, "dense"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, {}, "dtype"),
        ({"a": torch.ones((1,) * 9)}, {}, "dimensions"),
        ({"a": torch.ones(1)}, {"roles": {"a": "spare"}}, "role"),
        ({"a": torch.ones(1, dtype=torch.int8)}, {"roles": {"a": "scale"}}, "scales"),
        ({"a": torch.ones(1)}, {"metadata": {"loss": float("nan")}}, "JSON"),
        ({"a": torch.ones(1)}, {"metadata": {"shape": {1, 2}}}, "JSON"),
        ({"a": torch.ones(1)}, {"max_part_bytes": 0}, "max_part_bytes"),
        ({"a": torch.ones(1)}, {"max_part_bytes": 1 << 31}, "max_part_bytes"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_leaves_nothing(
    tmp_path: Path, tensors: dict[str, Tensor], options: dict[str, object], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        write_parquet_weights(tmp_path / "weights.parquet", tensors, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.parquet"
    write_parquet_weights(path, {"a": torch.ones(4)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            write_parquet_weights(path, {"a": torch.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(read_parquet_weights(path, verify="full")["a"], torch.ones(4))
