"""A tiny set of weights with every kind of tensor, and the files of it that the tests break."""

from pathlib import Path

import torch
from torch import Tensor

from hf_unified_diffusion.quantization import write_parquet_weights

ROLES = {"layer.weight": "packed", "layer.weight_scale": "scale"}
METADATA = {"licence": "apache-2.0"}


def small_tensors() -> dict[str, Tensor]:
    """Packed codes, scales, a vector, nothing, a scalar and booleans."""
    generator = torch.Generator().manual_seed(0)
    return {
        "layer.weight": torch.randint(0, 256, (4, 8), dtype=torch.uint8, generator=generator),
        "layer.weight_scale": torch.rand(4, 1, generator=generator).add(0.5).bfloat16(),
        "norm.weight": torch.randn(17, generator=generator),
        "empty": torch.empty(0, 3),
        "step": torch.tensor(3),
        "flag": torch.tensor([True, False]),
    }


def write_small(path: Path, **options: int) -> Path:
    """The file, or with `max_shard_bytes` the index; with `max_part_bytes` norm.weight has several parts."""
    return write_parquet_weights(path, small_tensors(), METADATA, roles=ROLES, **options)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Equal names in equal order, dtypes, shapes and bits."""
    return list(first) == list(second) and all(
        torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first
    )
