"""Model folders with Parquet weights: Auto classes, several files, nothing copied, one layer dequantized at a time."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from hf_unified_diffusion import ArrowQuantConfig, FormatError, UnifiedDiffusionModel, read_parquet_weights
from hf_unified_diffusion.conversion.convert import convert_checkpoint
from hf_unified_diffusion.quantization import QuantizedWeight, dequantized_cache_info, quantize_model
from tests.quantization.mapped import lies_in_a_mapping_of
from tests.tiny import tiny_model

INT2 = ArrowQuantConfig(bits=2, group_size=32, int8_modules=["embeddings"])
IDS = torch.arange(24).view(2, 12)
INDEX = "model.arrowquant.parquet.index.json"


@torch.no_grad()
def answer(model: UnifiedDiffusionModel) -> Tensor:
    return model.eval()(IDS, timestep=torch.tensor([0.3, 0.8])).logits[..., :-1]


def weight_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "safetensors" in path.name or "parquet" in path.name)


@pytest.fixture(scope="module", params=["dense", "INT2"])
def model(request: pytest.FixtureRequest) -> UnifiedDiffusionModel:
    return quantize_model(tiny_model(), INT2) if request.param == "INT2" else tiny_model()


@pytest.mark.parametrize("max_shard_size", [None, "8KB"])
@pytest.mark.parametrize("weights_format", ["parquet", "safetensors"])
def test_auto_model_loads_what_was_saved(
    model: UnifiedDiffusionModel, tmp_path: Path, weights_format: str, max_shard_size: str | None
) -> None:
    model.save_pretrained(tmp_path, weights_format=weights_format, max_shard_size=max_shard_size)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is UnifiedDiffusionModel
    assert not any(report.values())
    assert torch.equal(answer(loaded), answer(model))
    assert (len(weight_files(tmp_path)) == 1) == (max_shard_size is None)
    if weights_format == "parquet":
        assert all(lies_in_a_mapping_of(tmp_path, tensor) for tensor in loaded.state_dict().values())


def test_files_of_an_earlier_save_are_gone(model: UnifiedDiffusionModel, tmp_path: Path) -> None:
    for weights_format, max_shard_size in [
        ("parquet", "8KB"),
        ("safetensors", "8KB"),
        ("parquet", "16KB"),
        ("parquet", None),
        ("safetensors", None),
    ]:
        model.save_pretrained(tmp_path, weights_format=weights_format, max_shard_size=max_shard_size)
        assert all(weights_format in name for name in weight_files(tmp_path))
        indexes = [name for name in weight_files(tmp_path) if name.endswith(".index.json")]
        assert len(indexes) == (max_shard_size is not None)
        for name in indexes:
            named = json.loads((tmp_path / name).read_text())["weight_map"].values()
            assert {*named, name} == set(weight_files(tmp_path))
        assert torch.equal(answer(AutoModel.from_pretrained(tmp_path)), answer(model))


def test_a_model_saves_over_the_files_it_is_mapped_from(model: UnifiedDiffusionModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, weights_format="parquet", max_shard_size="8KB")
    loaded = AutoModel.from_pretrained(tmp_path)
    for max_shard_size in ("16KB", None, "8KB"):
        loaded.save_pretrained(tmp_path, weights_format="parquet", max_shard_size=max_shard_size)
        assert torch.equal(answer(AutoModel.from_pretrained(tmp_path)), answer(model))
    assert torch.equal(answer(loaded), answer(model))


def test_conversion_takes_several_files(model: UnifiedDiffusionModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "shards", weights_format="parquet", max_shard_size="8KB")
    convert_checkpoint(tmp_path / "shards", tmp_path / "back", "safetensors")
    assert weight_files(tmp_path / "back") == ["model.safetensors"]
    assert torch.equal(answer(AutoModel.from_pretrained(tmp_path / "back")), answer(model))


def cached_repository(cache: Path, folder: Path) -> Path:
    """The folder as the Hub's cache would hold it under the name someone/tiny."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(folder, repository / "snapshots" / commit))


def test_several_files_come_from_the_hubs_cache(model: UnifiedDiffusionModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model", weights_format="parquet", max_shard_size="8KB")
    snapshot = cached_repository(tmp_path / "cache", tmp_path / "model")
    loaded = UnifiedDiffusionModel.from_pretrained("someone/tiny", cache_dir=tmp_path / "cache")
    assert torch.equal(answer(loaded), answer(model))
    next(snapshot.glob("model-00002*")).unlink()
    with pytest.raises(OSError, match="must hold model-00002"):
        UnifiedDiffusionModel.from_pretrained("someone/tiny", cache_dir=tmp_path / "cache")


def test_a_broken_file_of_several_is_a_format_error(model: UnifiedDiffusionModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, weights_format="parquet", max_shard_size="8KB")
    names = read_parquet_weights(tmp_path / INDEX).files
    file = tmp_path / sorted(names)[1]
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError):
        AutoModel.from_pretrained(tmp_path)


def test_a_layer_is_dequantized_when_it_runs_and_no_other(tmp_path: Path) -> None:
    quantize_model(tiny_model(), INT2).save_pretrained(tmp_path)
    start = dequantized_cache_info()
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert dequantized_cache_info().dequantizations == start.dequantizations  # loading touches none
    layer = loaded.shared_transformer.layers[1]
    matrices = [module for module in layer.mlp.modules() if isinstance(module, QuantizedWeight)]
    assert len(matrices) == 3
    for hits in (0, 3):  # the first run fills the cache, the second finds it filled
        layer.mlp(torch.randn(1, 5, 32))
        info = dequantized_cache_info()
        assert (info.dequantizations - start.dequantizations, info.hits - start.hits) == (3, hits)
    assert info.used_bytes - start.used_bytes == sum(4 * math.prod(module.matrix_shape) for module in matrices)
    assert info.layers - start.layers == 3
    assert info.used_bytes <= info.limit_bytes
    answer(loaded)
    everywhere = [module for module in loaded.modules() if isinstance(module, QuantizedWeight)]
    assert 3 < dequantized_cache_info().dequantizations - start.dequantizations <= len(everywhere)
