"""ArrowQuant as a quantizer of transformers: on the fly, saved and loaded, dequantized."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from .configuration_arrowquant import ArrowQuantConfig
from .integer import Codes, check_scales, quantize
from .modules import QuantizedWeight, dequantize_layer, make_room, merged_ranks, quantize_layer


class ArrowQuantize(ConversionOps):
    """Load-time operation: a dense `weight` becomes `weight` (packed) and `weight_scale`."""

    def __init__(self, hf_quantizer: "ArrowQuantHfQuantizer"):
        self.hf_quantizer = hf_quantizer

    def convert(self, input_dict: dict[str, Any], *, model: nn.Module, **kwargs: Any) -> dict[str, Tensor]:
        """Several keys arrive when a converter of the model has split a fused tensor."""
        converted = {}
        for name, value in input_dict.items():
            layer, _ = get_module_from_name(model, name)
            dense = value[0] if isinstance(value, list) else value
            converted[name], converted[f"{name}_scale"] = quantize(dense, layer.bits, layer.group_size)
        return converted


class ArrowQuantHfQuantizer(HfQuantizer):
    """Registered with transformers as "arrowquant"; users meet it through `ArrowQuantConfig`."""

    requires_calibration = False
    quantization_config: ArrowQuantConfig

    @property
    def quantized_element_size(self) -> float:
        """Bytes per weight, for device maps."""
        return self.quantization_config.bits / 8

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """True for dense matrices of layers that wait to be packed."""
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, QuantizedWeight) and name == "weight" and not self.pre_quantized

    def get_quantize_ops(self) -> ConversionOps:
        """The operation for such parameters."""
        return ArrowQuantize(self)

    def _process_model_before_weight_loading(self, model: nn.Module, dtype: Any = None, **kwargs: Any) -> nn.Module:
        replace_layers(model, self.quantization_config, dtype, pack=self.pre_quantized)
        for module in model.modules():
            if isinstance(module, QuantizedWeight):
                module._is_hf_initialized = True  # there is no random start for codes: missing ones are refused below
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for name, module in model.named_modules():
            if isinstance(module, QuantizedWeight):
                self._check_loaded(name, module)
                for scale in [key for key in module.state_dict() if key.endswith("_scale")]:
                    check_scales(f"{name}.{scale}", getattr(module, scale))
        if self.pre_quantized and self.quantization_config.dequantize:
            return self._dequantize(model)
        return model

    def _check_loaded(self, name: str, layer: QuantizedWeight) -> None:
        """Refuse a layer that the checkpoint did not fill: transformers warns and leaves unwritten memory there."""
        if not layer.is_packed:
            raise ValueError(f"a layer to quantize needs its weight in the checkpoint, got none for {name}.weight")
        for tensor in [key for key in layer.state_dict() if key != "bias"] if self.pre_quantized else ():
            if getattr(layer, tensor).is_meta:
                raise ValueError(
                    f"device_map cannot put packed weights on the disk, got {name}.{tensor} there: Parquet weights are "
                    "mapped from their file already; accelerate.disk_offload(model, folder) works after loading"
                )
            if not getattr(getattr(layer, tensor), "_is_hf_initialized", False):
                raise ValueError(f"a quantized layer needs codes and scales in the checkpoint, got no {name}.{tensor}")

    def dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        """A dense model, in place; the base class would take the dtype of config.json, which `.to()` leaves stale."""
        self._dequantize(model, dtype)
        self.remove_quantization_config(model)
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        for name, module in list(model.named_modules()):
            if isinstance(module, QuantizedWeight):
                model.set_submodule(name, dequantize_layer(module, dtype))
        return model

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """No tensors for safetensors where the model itself writes them to Parquet; called before config.json is."""
        model.config.quantization_config.merged_ranks = merged_ranks(model)
        own = self.quantization_config.weights_format == "parquet" and getattr(model, "writes_parquet_weights", False)
        return ({} if own else None), {}

    def is_serializable(self) -> bool:
        """Quantized models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on top can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """torch.compile works."""
        return True


def layers_to_quantize(model: nn.Module, config: ArrowQuantConfig) -> dict[str, int]:
    """Module name -> bits, by the policy of the config.

    Layers that transformers ties to others stay dense: one parameter cannot be dense here and packed there.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    dense = {key.removesuffix(".weight") for key in (*tied.keys(), *tied.values())}
    dense.update(getattr(model, "_keep_in_fp32_modules", None) or ())
    return config.bits_of_layers(model, dense)


def replace_layers(
    model: nn.Module,
    config: ArrowQuantConfig,
    compute_dtype: torch.dtype | None = None,
    pack: bool = True,
    codes: Mapping[str, Codes] | None = None,
) -> nn.Module:
    """Put quantized layers into a model in place, by the policy of the config, with the codes that are given.

    Layers on the meta device get room for what the config says was merged into them.
    """
    for name, bits in layers_to_quantize(model, config).items():
        layer: Any = model.get_submodule(name)
        dtype = compute_dtype or layer.weight.dtype
        given = (codes or {}).get(name)
        quantized = quantize_layer(layer, bits, config.group_size, dtype, pack, given)
        quantized.activation_bits = config.activation_bits if bits == config.bits else 16
        if pack and layer.weight.is_meta and name in config.merged_ranks:
            make_room(quantized, config.merged_ranks[name])
        model.set_submodule(name, quantized)
    return model


def quantize_model(
    model: PreTrainedModel, config: ArrowQuantConfig, codes: Mapping[str, Codes] | None = None
) -> PreTrainedModel:
    """Quantize a transformers model in memory, in place, as `from_pretrained(quantization_config=config)` would.

    Args:
        codes: of some layers by module name, as `calibrated_codes` of the same config finds them; the others are
            rounded to the nearest level.

    Raises ValueError for a quantized model, and for codes of other layers or shapes.
    Usage: `quantize_model(model, ArrowQuantConfig(bits=4)).save_pretrained("folder")`
    """
    if getattr(model, "is_quantized", False):
        raise ValueError("model must be dense, got one that is quantized; dequantize it first")
    unknown = set(codes or ()) - set(config.bits_of_layers(model))
    if unknown:
        raise ValueError(f"codes must be of layers that the config quantizes, got {sorted(unknown)}")
    replace_layers(model, config, codes=codes)
    return mark_quantized(model, config)


def dequantize_model(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> None:
    """Give a quantized model plain weights, in place, of the values that its codes stand for; a dense one stays itself.

    Codes do not train, and plain weights have nothing to unpack at each pass.

    Usage: `dequantize_model(model)`
    """
    if getattr(model, "is_quantized", False):
        model.dequantize(dtype)


def mark_quantized(model: PreTrainedModel, config: ArrowQuantConfig) -> PreTrainedModel:
    """Tell transformers that the layers of a model are packed by this config now."""
    quantizer = ArrowQuantHfQuantizer(config, pre_quantized=False)
    model.hf_quantizer, model.is_quantized, model.quantization_method = quantizer, True, config.quant_method
    quantizer.postprocess_model(model)
    return model
