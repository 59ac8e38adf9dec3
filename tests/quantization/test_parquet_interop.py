"""The weight file beside other formats and programs: safetensors bit for bit, DuckDB and polars."""

import json
from pathlib import Path

import duckdb
import polars
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import _TYPES, load_file, save_file
from torch import Tensor

from hf_unified_diffusion.quantization import read_parquet_weights, write_parquet_weights
from hf_unified_diffusion.quantization.parquet_layout import DTYPES
from tests.quantization import hostile_weights as hostile
from tests.quantization.test_parquet_weights import named_tensors, tensor_bytes

FACTS = ("name", "role", "dtype", "shape", "part", "nbytes")


def test_every_dtype_of_safetensors_has_a_place() -> None:
    assert set(_TYPES.values()) == set(DTYPES.values())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=named_tensors())
def test_safetensors_to_parquet_and_back_is_equal_in_every_byte(tmp_path: Path, drawn: dict[str, Tensor]) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    parquet = tmp_path / "weights.parquet"
    save_file(drawn, first, {"format": "pt"})
    write_parquet_weights(parquet, load_file(first), {"format": "pt"})
    weights = read_parquet_weights(parquet, verify="full")
    save_file(dict(weights), second, weights.metadata)
    assert first.read_bytes() == second.read_bytes()


def manifest_rows(file: Path) -> list[tuple[object, ...]]:
    """The columns as the manifest has them, in file order."""
    entries = json.loads(hostile.manifest_text(file.read_bytes()))["tensors"]
    return [tuple(json.dumps(entry[key]) if key == "shape" else entry[key] for key in FACTS) for entry in entries]


def joined(rows: list[tuple[str, bytes]]) -> dict[str, bytes]:
    """Parts of one tensor put together."""
    found: dict[str, bytes] = {}
    for name, data in rows:
        found[name] = found.get(name, b"") + data
    return found


@pytest.mark.parametrize("which", ["small_file", "parts_file"])
def test_duckdb_agrees_with_the_manifest(which: str, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(which)
    with duckdb.connect(config={"threads": 1}) as connection:
        assert connection.sql(f"SELECT {', '.join(FACTS)} FROM '{file}'").fetchall() == manifest_rows(file)
        values = joined(connection.sql(f"SELECT name, data FROM '{file}'").fetchall())
        weights = read_parquet_weights(file)
        assert values == {name: tensor_bytes(tensor) for name, tensor in weights.items()}
        for name, tensor in weights.items():  # by the statistics of the row groups
            found = connection.execute(f"SELECT sum(nbytes) FROM '{file}' WHERE name = ?", [name]).fetchall()
            assert found == [(tensor.nbytes,)]
        stored = connection.sql(f"SELECT key, value FROM parquet_kv_metadata('{file}')").fetchall()
        assert (b"arrowquant.manifest", hostile.manifest_text(file.read_bytes())) in stored


@pytest.mark.parametrize("which", ["small_file", "parts_file"])
def test_polars_agrees_with_the_manifest(which: str, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(which)
    frame = polars.read_parquet(file)
    assert frame.select(FACTS).rows() == manifest_rows(file)
    weights = read_parquet_weights(file)
    assert joined(frame.select("name", "data").rows()) == {
        name: tensor_bytes(tensor) for name, tensor in weights.items()
    }
    for name, tensor in weights.items():
        found = polars.scan_parquet(file).filter(polars.col("name") == name).select("nbytes").collect()
        assert found["nbytes"].sum() == tensor.nbytes


def test_a_tensor_made_of_duckdbs_bytes_is_ours(small_file: Path) -> None:
    with duckdb.connect(config={"threads": 1}) as connection:
        query = f"SELECT data, shape FROM '{small_file}' WHERE name = 'norm.weight'"
        ((data, shape),) = connection.sql(query).fetchall()
    tensor = torch.frombuffer(bytearray(data), dtype=torch.float32).view(json.loads(shape))
    assert torch.equal(tensor, read_parquet_weights(small_file)["norm.weight"])
