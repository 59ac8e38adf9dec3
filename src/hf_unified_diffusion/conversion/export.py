"""From a training folder to a checkpoint that ships: quantized Parquet weights, tokenizer, scheduler, metadata."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..quantization import ArrowQuantConfig, calibrated_codes, quantize_model
from ..schedulers import MaskedDiffusionScheduler
from ..training.machine import fast_dtype


def export_checkpoint(
    source: Path,
    destination: Path,
    quantization: ArrowQuantConfig,
    supported_modalities: list[str],
    calibration: Sequence[Mapping[str, Any]] = (),
    **facts: Any,
) -> UnifiedDiffusionModel:
    """Quantize a trained model folder and write all that a pipeline needs; the old destination is replaced at the end.

    Args:
        calibration: inputs of the model that decide how the layers are rounded (`training.calibration_rows`); without
            any, each weight goes to its nearest level.

    Usage:
        export_checkpoint(Path("runs/edge/model"), Path("edge"), ArrowQuantConfig(bits=4), ["text", "code"])
    """
    model = UnifiedDiffusionModel.from_pretrained(source, dtype=torch.float32)
    codes = {}
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
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    training = {**model.checkpoint_facts.get("training", {}), **facts.get("training", {})}
    model.checkpoint_facts |= {**facts, "supported_modalities": supported_modalities, "training": training}
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    MaskedDiffusionScheduler(mask_token_id=model.config.mask_token_id).save_pretrained(partial)
    shutil.rmtree(destination, ignore_errors=True)
    os.replace(partial, destination)
