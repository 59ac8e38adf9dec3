"""The parts of a pipeline from a model checkpoint: network, tokenizer and scheduler settings in one folder."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..modeling.embedded import EMBEDDED_CHECKPOINT as EMBEDDED_CHECKPOINT
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler


def is_model_folder(path: str | Path) -> bool:
    """Whether a local folder holds one model rather than a diffusers pipeline."""
    return (Path(path) / "config.json").is_file() and not (Path(path) / DiffusionPipeline.config_name).is_file()


def scheduler_from(folder: str | Path, model: UnifiedDiffusionModel) -> MaskedDiffusionScheduler:
    """The scheduler saved in a model folder, else one with the number of steps that its metadata names."""
    if folder and (Path(folder) / MaskedDiffusionScheduler.config_name).is_file():
        return MaskedDiffusionScheduler.from_pretrained(folder)
    told = model.checkpoint_facts.get("scheduler", {})
    known = {name: told[name] for name in ("num_inference_steps",) if name in told}
    return MaskedDiffusionScheduler(mask_token_id=model.config.mask_token_id, **known)


def quantization_of_transformer(config: Any) -> Any:
    """What a pipeline's quantization config asks of the network; a network's own config is that already."""
    if not isinstance(config, PipelineQuantizationConfig):
        return config
    if config.quant_mapping is None:
        raise ValueError(f"quantization_config must give a quant_mapping, got quant_backend={config.quant_backend!r}")
    return config.quant_mapping.get("transformer")


def load_parts(
    folder: str | Path, dtype: torch.dtype | str | None = None, quantization_config: Any = None
) -> tuple[UnifiedDiffusionModel, MaskedDiffusionScheduler, PreTrainedTokenizerFast]:
    """Network, scheduler and tokenizer of a model folder; dtype None keeps the saved dtype.

    `quantization_config`: diffusers' `PipelineQuantizationConfig` or one of transformers for the network.

    Usage: `UnifiedDiffusionTextPipeline(*load_parts(EMBEDDED_CHECKPOINT))`
    """
    options = {"dtype": dtype, "quantization_config": quantization_of_transformer(quantization_config)}
    chosen = {name: value for name, value in options.items() if value is not None}
    model = UnifiedDiffusionModel.from_pretrained(folder, **chosen)
    return model, scheduler_from(folder, model), AutoTokenizer.from_pretrained(folder)
