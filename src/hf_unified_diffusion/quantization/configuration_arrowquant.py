"""Configuration of ArrowQuant and its policy: how many bits each layer of a model gets."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn
from transformers.utils.quantization_config import QuantizationConfigMixin

from .integer import BITS
from .modules import QuantizedWeight, can_quantize

QUANT_METHOD = "arrowquant"
WEIGHTS_FORMATS = ("parquet", "safetensors")
ACTIVATION_BITS = (8, 16)
# "embeddings" stands for every embedding layer, the two blocks for the ends of the longest module list
DEFAULT_INT8_MODULES = (
    "embeddings",
    "first_block",
    "last_block",
    "heads",
    "time_embedding",
    "unembedding",
    "lm_head",
)
# what raw numbers enter by, latents and sinusoids: few weights, and their inputs are far from normalized
DEFAULT_DENSE_MODULES = ("projections", "time_embedding.hidden")


class ArrowQuantConfig(QuantizationConfigMixin):
    """How `from_pretrained` quantizes a model, and how a saved one was.

    Args:
        bits: 8 (per row), 4 (groups) or 2 (groups, four weights a byte through a fixed table; without
            quantization-aware training INT2 loses much) of the layers that no list below names.
        group_size: columns that share a scale, at 4 and 2 bits. Layers whose width it does not divide get 8 bits.
        int8_modules: names kept at 8 bits; a name matches whole components of a module's dotted name. None: embeddings,
            heads, first and last block, time embedding, unembedding. [] quantizes everything to `bits`.
        modules_to_not_convert: names left dense. None: input projections and the first layer of the time embedding.
        weights_format: the file `save_pretrained` writes, "parquet" (`model.arrowquant.parquet`) or "safetensors".
        activation_bits: 8 rounds the tokens that layers of `bits` multiply to int8, each with a scale of its own: twice
            as fast on CPUs that sum products of bytes (VNNI, AMX; others ignore it) where no gradient is wanted, and
            less exact, see docs/decisions/0006-matmuls-on-cpus.md. 16: they compute in the model's dtype.
        merged_ranks: the rank of the adapters merged into each layer, by its name; saving a model sets it.
        dequantize: load a quantized checkpoint as a dense model; never saved.

    Raises ValueError for values out of range and unknown names.
    Usage: `UnifiedDiffusionModel.from_pretrained(path, quantization_config=ArrowQuantConfig(bits=4))`
    """

    def __init__(
        self,
        bits: int = 4,
        group_size: int = 64,
        int8_modules: Sequence[str] | None = None,
        modules_to_not_convert: Sequence[str] | None = None,
        weights_format: str = "parquet",
        activation_bits: int = 16,
        merged_ranks: Mapping[str, int] | None = None,
        dequantize: bool = False,
        quant_method: str = QUANT_METHOD,
    ):
        if bits not in BITS:
            raise ValueError(f"bits must be one of {BITS}, got {bits!r}")
        if type(group_size) is not int or group_size <= 0 or group_size % 4:
            raise ValueError(f"group_size must be a positive multiple of 4, got {group_size!r}")
        if weights_format not in WEIGHTS_FORMATS:
            raise ValueError(f"weights_format must be one of {WEIGHTS_FORMATS}, got {weights_format!r}")
        ranks = list((merged_ranks or {}).values())
        if any(type(rank) is not int or rank < 1 for rank in ranks):
            raise ValueError(f"merged_ranks must map names to positive integers, got {merged_ranks!r}")
        if activation_bits not in ACTIVATION_BITS:
            raise ValueError(f"activation_bits must be one of {ACTIVATION_BITS}, got {activation_bits!r}")
        if quant_method != QUANT_METHOD:
            raise ValueError(f"quant_method must be {QUANT_METHOD!r}, got {quant_method!r}")
        self.quant_method: Any = quant_method
        self.bits, self.group_size = bits, group_size
        self.int8_modules = list(DEFAULT_INT8_MODULES if int8_modules is None else int8_modules)
        dense = DEFAULT_DENSE_MODULES if modules_to_not_convert is None else modules_to_not_convert
        self.modules_to_not_convert = list(dense)
        self.weights_format, self.activation_bits, self.dequantize = weights_format, activation_bits, dequantize
        self.merged_ranks = dict(merged_ranks or {})

    def get_loading_attributes(self) -> dict[str, Any]:
        """What a config given at load time may change about a saved one."""
        return {"dequantize": self.dequantize, "activation_bits": self.activation_bits}

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        values = super().to_dict()
        if not self.merged_ranks:
            del values["merged_ranks"]  # earlier versions read such files
        return {key: value for key, value in values.items() if key != "dequantize"}

    def bits_of_layers(self, model: nn.Module, dense: Collection[str] = ()) -> dict[str, int]:
        """Module name -> bits of every layer to quantize; `dense` names layers to leave out besides the config's."""
        blocks = _end_blocks(model)
        plan = {}
        for name, module in model.named_modules():
            if not (can_quantize(module) or isinstance(module, QuantizedWeight)):
                continue
            if any(_matches(name, pattern) for pattern in (*self.modules_to_not_convert, *dense)):
                continue
            fine = isinstance(module, nn.Embedding) and "embeddings" in self.int8_modules
            fine = fine or any(_matches(name, blocks.get(pattern, pattern)) for pattern in self.int8_modules)
            plan[name] = 8 if fine or _width(module) % self.group_size else self.bits
        return plan


def _width(layer: Any) -> int:
    return layer.embedding_dim if isinstance(layer, nn.Embedding) else layer.in_features


def _matches(name: str, pattern: str) -> bool:
    return f".{pattern}." in f".{name}."


def _end_blocks(model: nn.Module) -> dict[str, str]:
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return {}
    name, blocks = max(lists, key=lambda item: len(item[1]))
    return {"first_block": f"{name}.0", "last_block": f"{name}.{len(blocks) - 1}"}
