"""ArrowQuant: weight matrices <-> integer codes, Parquet V2 files, quantized layers, the transformers plug-in."""

from functools import cache
from importlib.util import find_spec

from .calibrated_rounding import quantize_calibrated
from .calibration import calibrated_codes
from .configuration_arrowquant import QUANT_METHOD, ArrowQuantConfig
from .dequantized_cache import DequantizedCacheInfo, dequantized_cache_info, set_dequantized_cache_bytes
from .integer import dequantize, nearest_levels, quantize
from .learned_table import learn_table
from .modules import (
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedWeight,
    bits_per_weight,
    merged_ranks,
    num_weights,
    stored_bytes,
)
from .parquet_files import ShardedParquetWeights, read_parquet_weights, write_parquet_weights
from .parquet_layout import FormatError
from .parquet_reader import ParquetWeights
from .quantizer_arrowquant import (
    ArrowQuantHfQuantizer,
    dequantize_model,
    layers_to_quantize,
    mark_quantized,
    quantize_model,
    replace_layers,
)

__all__ = [
    "ArrowQuantConfig",
    "ArrowQuantHfQuantizer",
    "DequantizedCacheInfo",
    "FormatError",
    "ParquetWeights",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedWeight",
    "ShardedParquetWeights",
    "bits_per_weight",
    "calibrated_codes",
    "dequantize",
    "dequantize_model",
    "dequantized_cache_info",
    "layers_to_quantize",
    "learn_table",
    "mark_quantized",
    "merged_ranks",
    "nearest_levels",
    "num_weights",
    "quantize",
    "quantize_calibrated",
    "quantize_model",
    "read_parquet_weights",
    "register",
    "replace_layers",
    "set_dequantized_cache_bytes",
    "stored_bytes",
    "write_parquet_weights",
]


@cache
def register() -> None:
    """Make transformers know "arrowquant", and PEFT, where installed, merge LoRA into its layers; once a process.

    Usage: `register(); AutoModel.from_pretrained(path, quantization_config=ArrowQuantConfig(bits=4))`
    """
    from transformers.quantizers import auto

    auto.register_quantization_config(QUANT_METHOD)(ArrowQuantConfig)
    auto.register_quantizer(QUANT_METHOD)(ArrowQuantHfQuantizer)
    # transformers honours load-time attributes (dequantize=True) of the classes in this tuple alone
    auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*auto.LOADING_ATTRIBUTES_CONFIG_TYPES, ArrowQuantConfig)
    if find_spec("peft") is not None:
        from .peft_arrowquant import register_with_peft

        register_with_peft()
