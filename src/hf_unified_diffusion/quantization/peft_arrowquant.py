"""LoRA on quantized layers: PEFT's own layer trains and infers; merging goes through the dense matrix."""

import warnings
from typing import Any

import torch
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.model import LoraModel
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor

from .modules import QuantizedEmbedding, QuantizedLinear, QuantizedWeight

_LEAST_SHARE = 0.5
_SWALLOWED = (
    "rounding to {bits} bits swallows more than half of the adapter, whose changes are smaller than a step: leave it "
    "unmerged, or merge it into the dense model, `model.dequantize()`"
)


def kept_share(change: Tensor, wanted: Tensor) -> float:
    """How much of a wanted change was made, along its own direction; 1 where none was wanted."""
    power = wanted.square().sum()
    return (change * wanted).sum().div(power).item() if power > 0 else 1.0


class _RequantizingMerge:
    """merge = dequantize, add, requantize; a merge into rounded weights cannot be undone."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        layer: Any = self
        base: QuantizedWeight = layer.get_base_layer()
        known = layer.lora_A.keys() | layer.lora_embedding_A.keys()
        for name in check_adapters_to_merge(layer, adapter_names):
            if name not in known:
                continue
            before, delta = base.dequantized(torch.float32), layer.get_delta_weight(name).detach().float()
            base.requantize(before + delta)
            if kept_share(base.dequantized(torch.float32) - before, delta) < _LEAST_SHARE:
                warnings.warn(_SWALLOWED.format(bits=base.bits), stacklevel=2)
            layer.merged_adapters.append(name)

    def unmerge(self) -> None:
        raise ValueError("adapters merged into quantized weights cannot be unmerged: load the base model again")


class ArrowQuantLoraLinear(_RequantizingMerge, LoraLinear):
    """LoRA over a `QuantizedLinear`."""


class ArrowQuantLoraEmbedding(_RequantizingMerge, LoraEmbedding):
    """LoRA over a `QuantizedEmbedding`."""


_CUSTOM_MODULES = {QuantizedLinear: ArrowQuantLoraLinear, QuantizedEmbedding: ArrowQuantLoraEmbedding}
_create_new_module = LoraModel._create_new_module


def _create_for_quantized(lora_config: Any, adapter_name: str, target: Any, **kwargs: Any) -> Any:
    base = target.get_base_layer() if hasattr(target, "get_base_layer") else target
    if isinstance(base, QuantizedWeight):
        if lora_config.use_dora or lora_config.lora_bias:
            raise ValueError("quantized layers take plain LoRA: set use_dora=False and lora_bias=False")
        lora_config._register_custom_module(_CUSTOM_MODULES)
    return _create_new_module(lora_config, adapter_name, target, **kwargs)


def register_with_peft() -> None:
    """PEFT has no registry of layer types beyond a single LoraConfig: stand before the function that makes layers."""
    LoraModel._create_new_module = staticmethod(_create_for_quantized)
