"""LoRA on quantized layers: PEFT's own layer trains and infers; merging keeps its product beside the codes."""

from typing import Any

from peft.tuners.lora.layer import Embedding as LoraEmbedding
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.model import LoraModel
from peft.tuners.tuners_utils import check_adapters_to_merge

from .modules import QuantizedEmbedding, QuantizedLinear, QuantizedWeight


class _MergedBeside:
    """An adapter is merged by standing beside the codes, in INT8, which stay as they are: it can be taken out again."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        layer: Any = self
        base: QuantizedWeight = layer.get_base_layer()
        for name in check_adapters_to_merge(layer, adapter_names):
            if name in layer.lora_A:
                outer, inner = layer.lora_B[name].weight, layer.lora_A[name].weight
            elif name in layer.lora_embedding_A:
                outer, inner = layer.lora_embedding_A[name].T, layer.lora_embedding_B[name].T
            else:
                continue
            base.merge(layer.scaling[name] * outer.detach().float(), inner.detach().float())
            layer.merged_adapters.append(name)

    def unmerge(self) -> None:
        layer: Any = self
        while layer.merged_adapters:
            layer.get_base_layer().unmerge(layer.r[layer.merged_adapters.pop()])


class ArrowQuantLoraLinear(_MergedBeside, LoraLinear):
    """LoRA over a `QuantizedLinear`."""


class ArrowQuantLoraEmbedding(_MergedBeside, LoraEmbedding):
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
