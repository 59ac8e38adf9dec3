"""Which tier, at how many bits, with how many dense layers kept, fits a machine's memory: arithmetic on shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from ..quantization import QuantizedEmbedding, QuantizedWeight, bits_per_weight, stored_bytes
from ..quantization.integer import BITS
from .configuration_unified_diffusion import UnifiedDiffusionConfig
from .modeling_unified_diffusion import UnifiedDiffusionModel
from .tiers import TIERS, Tier, without_memory

# Python with torch, transformers and diffusers imported, on Linux without a GPU (benchmarks/edge_memory.py)
RUNTIME_BYTES = 490_000_000
# what one token of a pass holds at the same time, in widths of the trunk and of its MLP
_HIDDEN_COPIES, _INTERMEDIATE_COPIES = 8, 5
_FILE_BYTES_PER_TENSOR = 1200  # row group, page header and manifest entry of a Parquet file


@dataclass(frozen=True)
class MemoryPlan:
    """What one process needs for one network, in bytes.

    Attributes:
        tier: name.
        bits, bits_per_weight: of its quantization, named and effective.
        file_bytes: its weights on disk, all of them mapped into memory.
        all_dense_bytes: every quantized layer dequantized, as the cache keeps it when it may.
        cache_bytes: the part of these that fits; the rest is dequantized anew at each use.
        context_bytes: keys and values of the context.
        working_bytes: a pass over the context, and the largest layer while it is dequantized.
        runtime_bytes: the interpreter and its libraries.
        memory_bytes: what there is.
    """

    tier: str
    bits: int
    bits_per_weight: float
    file_bytes: int
    all_dense_bytes: int
    cache_bytes: int
    context_bytes: int
    working_bytes: int
    runtime_bytes: int
    memory_bytes: int

    @property
    def least_bytes(self) -> int:
        """What the process needs when it keeps no dense layer."""
        return self.runtime_bytes + self.file_bytes + self.context_bytes + self.working_bytes

    @property
    def total_bytes(self) -> int:
        """What the process takes with its cache full."""
        return self.least_bytes + self.cache_bytes

    @property
    def fits(self) -> bool:
        """Whether it runs at all."""
        return self.least_bytes <= self.memory_bytes

    @property
    def fits_dense(self) -> bool:
        """Whether every layer stays dense: no step dequantizes anything again."""
        return self.cache_bytes == self.all_dense_bytes


def plan_model(
    model: nn.Module,
    config: UnifiedDiffusionConfig,
    memory_bytes: int,
    context_length: int = 2048,
    dtype: torch.dtype = torch.float32,
    tier: str = "",
    bits: int = 0,
) -> MemoryPlan:
    """The plan of one quantized model, which may be on the meta device, computing in `dtype`."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedWeight)]
    # a table of tokens is dequantized as a whole only where it is the unembedding too
    kept = [layer for layer in layers if not isinstance(layer, QuantizedEmbedding) or config.tie_word_embeddings]
    dense = [dtype.itemsize * rows * columns for rows, columns in (layer.matrix_shape for layer in kept)]
    scratch = [size + 4 * layer.weight.numel() for size, layer in zip(dense, kept, strict=True)]  # and int32 codes
    keys = config.num_hidden_layers * config.num_key_value_heads * config.head_size
    width = _HIDDEN_COPIES * config.hidden_size + _INTERMEDIATE_COPIES * config.intermediate_size
    plan = MemoryPlan(
        tier=tier,
        bits=bits,
        bits_per_weight=bits_per_weight(model),
        file_bytes=stored_bytes(model) + _FILE_BYTES_PER_TENSOR * len(model.state_dict()),
        all_dense_bytes=sum(dense),
        cache_bytes=0,
        context_bytes=2 * 2 * keys * context_length * dtype.itemsize,  # twice: copied as it grows
        working_bytes=context_length * width * dtype.itemsize + max(scratch, default=0),
        runtime_bytes=RUNTIME_BYTES,
        memory_bytes=memory_bytes,
    )
    cache = min(plan.all_dense_bytes, max(0, memory_bytes - plan.least_bytes))
    return MemoryPlan(**{**vars(plan), "cache_bytes": cache})


def plan_tier(tier: Tier, memory_bytes: int, context_length: int, dtype: torch.dtype) -> MemoryPlan:
    """The most bits at which every layer of a tier stays dense; where none does, the fewest bits."""
    for bits in sorted(BITS, reverse=True):
        model = _shapes(tier.name, bits, dtype)
        plan = plan_model(model, model.config, memory_bytes, context_length, dtype, tier.name, bits)
        if plan.fits_dense:
            break
    return plan


@cache
def _shapes(name: str, bits: int, dtype: torch.dtype) -> UnifiedDiffusionModel:
    return without_memory(TIERS[name].config(), TIERS[name].quantization(bits), dtype)


def plan_memory(
    memory_bytes: int,
    modalities: Sequence[str] = ("text",),
    context_length: int = 2048,
    dtype: torch.dtype = torch.float32,
) -> list[MemoryPlan]:
    """A plan for each tier that has the modalities, smallest tier first.

    Args:
        memory_bytes: what one process may take.
        modalities: names of those wanted.
        context_length: tokens of the longest prompt.
        dtype: what the network computes in.

    Raises ValueError for numbers below 1, and where no tier has the modalities.
    Usage: `best = recommended(plan_memory(2_000_000_000, ["text", "audio"]))`
    """
    for name, value in {"memory_bytes": memory_bytes, "context_length": context_length}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    tiers = [tier for tier in TIERS.values() if set(modalities) <= set(tier.modalities)]
    if not tiers:
        known = {tier.name: tier.modalities for tier in TIERS.values()}
        raise ValueError(f"modalities must be among those of a tier, {known}, got {list(modalities)}")
    return [plan_tier(tier, memory_bytes, context_length, dtype) for tier in tiers]


def recommended(plans: Sequence[MemoryPlan]) -> MemoryPlan | None:
    """The largest tier whose layers all stay dense; else the smallest that runs at all; None where nothing does."""
    dense = [plan for plan in plans if plan.fits_dense]
    running = [plan for plan in plans if plan.fits]
    return dense[-1] if dense else running[0] if running else None
