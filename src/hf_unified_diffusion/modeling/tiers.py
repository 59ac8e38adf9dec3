"""Three sizes of network for three sizes of machine (requirement 14), each with the bits that its file may have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..quantization import ArrowQuantConfig, replace_layers
from .configuration_unified_diffusion import UnifiedDiffusionConfig, default_modalities
from .modeling_unified_diffusion import UnifiedDiffusionModel

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Tier:
    """A named size; made by `tier`.

    Attributes:
        machine: what it is for.
        modalities: those it has heads for.
        max_parameters, max_file_bytes: its bounds; None for no bound on the file.
        shape: fields of `UnifiedDiffusionConfig`.
        bits, int8_modules: its quantization policy.
    """

    name: str
    machine: str
    modalities: tuple[str, ...]
    max_parameters: int
    max_file_bytes: int | None
    shape: Mapping[str, int]
    bits: int
    int8_modules: tuple[str, ...]

    def config(self, **changes: Any) -> UnifiedDiffusionConfig:
        """The configuration of a network of this size; `changes` are further fields of it."""
        specs = default_modalities()
        values = {
            **self.shape,
            "mask_token_id": self.shape["vocab_size"] - 1,
            "modalities": {name: specs[name] for name in self.modalities},
        }
        return UnifiedDiffusionConfig(**{**values, **changes})

    def quantization(self, bits: int | None = None) -> ArrowQuantConfig:
        """The policy of this tier, at its own bits or at others."""
        chosen = self.bits if bits is None else bits
        return ArrowQuantConfig(chosen, int8_modules=list(self.int8_modules), modules_to_not_convert=[])


# What every canvas passes through stays at 8 bits. The first and last block do not: in the two small tiers there is no
# room for them, see docs/tiers.md.
_ALWAYS_INT8 = ("embeddings", "unembedding", "heads", "projections", "time_embedding")
TIERS = {
    "edge": Tier(
        name="edge",
        machine="2-4 GB of memory",
        modalities=("text", "code", "audio"),
        max_parameters=100 * MEGABYTE,
        max_file_bytes=35 * MEGABYTE,
        shape={
            "vocab_size": 12288,
            "hidden_size": 576,
            "num_hidden_layers": 24,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "cross_attention_every": 12,
        },
        bits=2,
        int8_modules=_ALWAYS_INT8,
    ),
    "workstation": Tier(
        name="workstation",
        machine="8 GB of memory and more",
        modalities=("text", "code", "audio", "image"),
        max_parameters=600 * MEGABYTE,
        max_file_bytes=200 * MEGABYTE,
        shape={
            "vocab_size": 32768,
            "hidden_size": 1280,
            "num_hidden_layers": 28,
            "num_attention_heads": 20,
            "num_key_value_heads": 5,
            "intermediate_size": 3584,
            "cross_attention_every": 8,
        },
        bits=2,
        int8_modules=_ALWAYS_INT8,
    ),
    "cloud": Tier(
        name="cloud",
        machine="a GPU",
        modalities=("text", "code", "audio", "image", "avatar"),
        max_parameters=3000 * MEGABYTE,
        max_file_bytes=None,
        shape={
            "vocab_size": 65536,
            "hidden_size": 2560,
            "num_hidden_layers": 36,
            "num_attention_heads": 20,
            "num_key_value_heads": 5,
            "intermediate_size": 7680,
            "cross_attention_every": 8,
        },
        bits=4,
        int8_modules=(*_ALWAYS_INT8, "first_block", "last_block"),
    ),
}


def tier(name: str) -> Tier:
    """A size by its name: "edge", "workstation" or "cloud"; ValueError for another.

    Usage: `model = UnifiedDiffusionModel(tier("edge").config()); quantize_model(model, tier("edge").quantization())`
    """
    if name not in TIERS:
        raise ValueError(f"tier must be one of {sorted(TIERS)}, got {name!r}")
    return TIERS[name]


def without_memory(
    config: UnifiedDiffusionConfig,
    quantization: ArrowQuantConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> UnifiedDiffusionModel:
    """A network on the meta device: names, shapes and dtypes of its weights, and no bytes behind them.

    Usage: `stored_bytes(without_memory(tier("edge").config(), tier("edge").quantization()))`
    """
    with torch.device("meta"):
        model = UnifiedDiffusionModel(config).to(dtype)
    if quantization is not None:
        replace_layers(model, quantization, dtype)
    return model
