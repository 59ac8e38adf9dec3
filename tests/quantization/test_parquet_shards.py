"""Laws of weights in several files: the same tensors, mapped as one file's are, or a FormatError."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_unified_diffusion.quantization import FormatError, read_parquet_weights, write_parquet_weights
from tests.quantization.mapped import lies_in_a_mapping_of
from tests.quantization.small_weights import METADATA, ROLES, same, write_small


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_small(tmp_path / "model.arrowquant.parquet", max_shard_bytes=40)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_several_files_hold_what_one_holds(index: Path, small_tensors: dict[str, Tensor]) -> None:
    assert index.name == "model.arrowquant.parquet.index.json"
    for verify in ("header", "touch", "full"):
        weights = read_parquet_weights(index, verify=verify)
        assert same(dict(weights), small_tensors)
        assert weights.metadata == METADATA
        assert weights.roles == {name: ROLES.get(name, "dense") for name in small_tensors}
    assert all(lies_in_a_mapping_of(index.parent, tensor) for tensor in weights.values() if tensor.numel())


@pytest.mark.parametrize("bound", [1, 40, 41, 100, 10_000])
def test_files_keep_to_the_bound_or_hold_one_tensor(
    tmp_path: Path, bound: int, small_tensors: dict[str, Tensor]
) -> None:
    path = write_small(tmp_path / "weights.parquet", max_shard_bytes=bound)
    weights = read_parquet_weights(path, "full")
    assert same(dict(weights), small_tensors)
    shards = [read_parquet_weights(file) for file in sorted(tmp_path.glob("*.parquet"))]
    assert (len(shards) == 1) == (bound == 10_000) == (path.suffix == ".parquet")
    for shard in shards:
        assert sum(tensor.nbytes for tensor in shard.values()) <= bound or len(shard) == 1


def test_the_index_is_that_of_transformers(index: Path, small_tensors: dict[str, Tensor]) -> None:
    fields = json.loads(index.read_text())
    assert list(fields["weight_map"]) == list(small_tensors)
    assert fields["metadata"]["total_size"] == sum(tensor.nbytes for tensor in small_tensors.values())
    assert {*fields["weight_map"].values(), index.name} == set(files(index.parent))


def test_equal_weights_give_equal_files_and_new_ones_replace_the_old(index: Path) -> None:
    before = {path.name: path.read_bytes() for path in index.parent.iterdir()}
    write_small(index.with_name("model.arrowquant.parquet"), max_shard_bytes=40)
    assert {path.name: path.read_bytes() for path in index.parent.iterdir()} == before
    other = {"a": torch.ones(9), "b": torch.ones(2)}
    write_parquet_weights(index.with_name("model.arrowquant.parquet"), other, max_shard_bytes=40)
    assert len(files(index.parent)) == 3 and not set(files(index.parent)) & (set(before) - {index.name})
    write_small(index.with_name("model.arrowquant.parquet"))
    assert files(index.parent) == ["model.arrowquant.parquet"]
    write_small(index.with_name("model.arrowquant.parquet"), max_shard_bytes=40)
    assert files(index.parent) == sorted(before)


def test_a_broken_index_is_replaced_and_no_file_it_names_is_touched(tmp_path: Path) -> None:
    index = tmp_path / "weights.parquet.index.json"
    (tmp_path / "precious").write_text("keep")
    about = {"version": 1, "manifest_sha256": {"precious": "0" * 64}}
    index.write_text(json.dumps({"metadata": about, "weight_map": {"a": "precious"}}))
    write_small(tmp_path / "weights.parquet")
    assert files(tmp_path) == ["precious", "weights.parquet"]


def renamed(fields: dict[str, Any], name: str) -> None:
    """Every mention of the first file under another name."""
    first = next(iter(fields["metadata"]["manifest_sha256"]))
    fields["metadata"]["manifest_sha256"][name] = fields["metadata"]["manifest_sha256"].pop(first)
    fields["weight_map"] = {tensor: name if file == first else file for tensor, file in fields["weight_map"].items()}


BAD_INDEXES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no weight map": lambda fields: fields.pop("weight_map"),
    "weight map a list": lambda fields: fields.update(weight_map=[]),
    "no metadata": lambda fields: fields.pop("metadata"),
    "unknown version": lambda fields: fields["metadata"].update(version=2),
    "version true": lambda fields: fields["metadata"].update(version=True),
    "no digests": lambda fields: fields["metadata"].pop("manifest_sha256"),
    "no files": lambda fields: fields["metadata"].update(manifest_sha256={}),
    "a path out of the folder": lambda fields: renamed(fields, "../model-00001-of-00003-0123456789abcdef.parquet"),
    "an absolute path": lambda fields: renamed(fields, "/dev/zero"),
    "a name with NUL": lambda fields: renamed(fields, "a\0-00001-of-00003-0123456789abcdef.parquet"),
    "a file of another kind": lambda fields: renamed(fields, "config.json"),
    "a digest of another file": lambda fields: fields["metadata"]["manifest_sha256"].update(
        {next(iter(fields["metadata"]["manifest_sha256"])): "0" * 64}
    ),
    "a digest that is no string": lambda fields: fields["metadata"]["manifest_sha256"].update(
        {next(iter(fields["metadata"]["manifest_sha256"])): 0}
    ),
    "a tensor left out": lambda fields: fields["weight_map"].pop("flag"),
    "a tensor that is not there": lambda fields: fields["weight_map"].update(
        more=next(iter(fields["weight_map"].values()))
    ),
    "a tensor in the wrong file": lambda fields: fields["weight_map"].update(flag=fields["weight_map"]["layer.weight"]),
    "a tensor in an unnamed file": lambda fields: fields["weight_map"].update(flag="more"),
    "a tensor in a list": lambda fields: fields["weight_map"].update(flag=["more"]),
}


@pytest.mark.parametrize("case", sorted(BAD_INDEXES))
def test_bad_indexes_are_refused(index: Path, case: str) -> None:
    fields = json.loads(index.read_text())
    BAD_INDEXES[case](fields)
    index.write_text(json.dumps(fields))
    with pytest.raises(FormatError):
        read_parquet_weights(index)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": {}, "a": {}}', '{"metadata": NaN}', "[" * 100_000])
def test_an_index_is_strict_json(index: Path, text: str) -> None:
    index.write_text(text)
    with pytest.raises(FormatError):
        read_parquet_weights(index)


def test_a_file_of_another_save_and_a_missing_one_are_noticed(index: Path, tmp_path: Path) -> None:
    first = sorted(tmp_path.glob("model-00001*"))[0]
    other = write_small(tmp_path / "other.parquet")
    other.rename(first)
    with pytest.raises(FormatError, match="must be the file that the index names"):
        read_parquet_weights(index)
    first.unlink()
    with pytest.raises(FileNotFoundError):
        read_parquet_weights(index)


@pytest.mark.parametrize("bound", [0, -1])
def test_bad_bounds_are_refused(tmp_path: Path, bound: int) -> None:
    with pytest.raises(ValueError, match="max_shard_bytes"):
        write_small(tmp_path / "weights.parquet", max_shard_bytes=bound)
    assert files(tmp_path) == []
