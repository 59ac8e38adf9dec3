"""From a training folder to a checkpoint that ships: quantized Parquet weights, tokenizer, scheduler, metadata."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..quantization import ArrowQuantConfig
from ..schedulers import MaskedDiffusionScheduler


def export_checkpoint(
    source: Path, destination: Path, quantization: ArrowQuantConfig, supported_modalities: list[str], **facts: Any
) -> UnifiedDiffusionModel:
    """Quantize a trained model folder and write all that a pipeline needs; the old destination is replaced at the end.

    Usage:
        export_checkpoint(Path("runs/edge/model"), Path("edge"), ArrowQuantConfig(bits=4), ["text", "code"])
    """
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model = UnifiedDiffusionModel.from_pretrained(source, dtype=torch.float32, quantization_config=quantization)
    training = {**model.checkpoint_facts.get("training", {}), **facts.get("training", {})}
    model.checkpoint_facts |= {**facts, "supported_modalities": supported_modalities, "training": training}
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source).save_pretrained(partial)
    MaskedDiffusionScheduler(mask_token_id=model.config.mask_token_id).save_pretrained(partial)
    shutil.rmtree(destination, ignore_errors=True)
    os.replace(partial, destination)
    return model
