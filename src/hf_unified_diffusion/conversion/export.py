"""From a training folder to a checkpoint that ships: quantized Parquet weights, tokenizer, scheduler, metadata."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..folders import replacing
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..quantization import ArrowQuantConfig, calibrated_codes, quantize_model
from ..quantization.integer import Codes
from ..schedulers import MaskedDiffusionScheduler
from ..training.machine import fast_dtype
from ..training.quantization_aware import RoundedWeights

TOKENIZER_FILE = "tokenizer.json"
SKIP_DTYPE = torch.bfloat16  # half the bytes, and finer than what a skip corrects


def export_checkpoint(
    source: Path,
    destination: Path,
    quantization: ArrowQuantConfig,
    supported_modalities: list[str],
    calibration: Sequence[Mapping[str, Any]] = (),
    scales: Mapping[str, Tensor] | None = None,
    **facts: Any,
) -> UnifiedDiffusionModel:
    """Quantize a trained model folder and write all that a pipeline needs; the old destination is replaced at the end.

    Args:
        calibration: inputs of the model that decide how the layers are rounded (`training.calibration_rows`); without
            any, each weight goes to its nearest level.
        scales: of the layers, by module name, that the network was trained to be rounded with
            (`training.quantization_aware.scales_of`); without any they are searched. Calibration searches its own.

    A folder that was rounded where it was trained (`examples/quantize_weights.py`) is laid out code by code as it is.

    Raises ValueError for calibration or scales of a network that is rounded already.

    Usage:
        export_checkpoint(Path("runs/edge/model"), Path("edge"), ArrowQuantConfig(bits=4), ["text", "code"])
    """
    model = UnifiedDiffusionModel.from_pretrained(source, dtype=torch.float32)
    if getattr(model, "is_quantized", False):
        if calibration or scales is not None:
            raise ValueError(f"a network that is rounded takes neither calibration nor scales, got some for {source}")
        write_checkpoint(model, AutoTokenizer.from_pretrained(source), destination, supported_modalities, **facts)
        return model
    codes: Mapping[str, Codes] = {} if scales is None else RoundedWeights(model, quantization, scales=scales).codes()
    if calibration:
        with torch.autocast(model.device.type, fast_dtype(), enabled=fast_dtype() is not torch.float32):
            codes = calibrated_codes(model, quantization, calibration)
    quantize_model(model, quantization, codes)
    write_checkpoint(model, AutoTokenizer.from_pretrained(source), destination, supported_modalities, **facts)
    return model


def write_checkpoint(
    model: UnifiedDiffusionModel,
    tokenizer: PreTrainedTokenizerFast,
    destination: Path,
    supported_modalities: list[str],
    **facts: Any,
) -> None:
    """Write a model in memory and all that a pipeline needs; the old destination is replaced at the end.

    Usage: `write_checkpoint(model, tokenizer, Path("edge"), ["text", "code"], license="apache-2.0")`
    """
    training = {**model.checkpoint_facts.get("training", {}), **facts.get("training", {})}
    model.checkpoint_facts |= {**facts, "supported_modalities": supported_modalities, "training": training}
    model.skips.to(SKIP_DTYPE)
    with replacing(destination) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        tokenizer.backend_tokenizer.save(str(partial / TOKENIZER_FILE), pretty=False)  # of its size, half is spaces
        MaskedDiffusionScheduler(mask_token_id=model.config.mask_token_id).save_pretrained(partial)
