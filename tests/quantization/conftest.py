from pathlib import Path

import pytest
import torch

from hf_unified_diffusion.quantization import write_parquet_weights


@pytest.fixture(scope="session")
def small_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layer.weight": torch.randint(0, 256, (4, 8), dtype=torch.uint8, generator=generator),
        "layer.weight_scale": torch.rand(4, 1, generator=generator).add(0.5).bfloat16(),
        "norm.weight": torch.randn(17, generator=generator),
        "empty": torch.empty(0, 3),
        "flag": torch.tensor([True, False]),
    }


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory, small_tensors: dict[str, torch.Tensor]) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.parquet"
    roles = {"layer.weight": "packed", "layer.weight_scale": "scale"}
    write_parquet_weights(path, small_tensors, {"licence": "apache-2.0"}, roles=roles)
    return path
