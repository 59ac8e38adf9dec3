"""The parts of a pipeline from a model checkpoint: network, tokenizer and scheduler settings in one folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import CONFIG_NAME

from ..modeling.embedded import EMBEDDED_CHECKPOINT as EMBEDDED_CHECKPOINT
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..modeling.parquet_weights import find_file
from ..schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


def hub_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What says where on the Hub a file is looked for."""
    return {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}


def is_model_checkpoint(name: str | Path, **hub: Any) -> bool:
    """Whether a folder or repository holds one model rather than a diffusers pipeline.

    Raises OSError where there is no such repository.
    """
    return find_file(name, DiffusionPipeline.config_name, hub) is None and find_file(name, CONFIG_NAME, hub) is not None


def scheduler_from(name: str | Path, model: UnifiedDiffusionModel, **hub: Any) -> MaskedDiffusionScheduler:
    """The scheduler saved beside a model, else one with the number of steps that the model's metadata names."""
    if name and find_file(name, MaskedDiffusionScheduler.config_name, hub) is not None:
        return MaskedDiffusionScheduler.from_pretrained(name, **hub)
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
    name_or_path: str | Path, dtype: torch.dtype | str | None = None, quantization_config: Any = None, **hub: Any
) -> tuple[UnifiedDiffusionModel, MaskedDiffusionScheduler, PreTrainedTokenizerFast]:
    """Network, scheduler and tokenizer of a model folder or repository; dtype None keeps the saved dtype.

    `quantization_config`: diffusers' `PipelineQuantizationConfig` or one of transformers for the network.
    `hub`: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

    Usage: `UnifiedDiffusionTextPipeline(*load_parts(EMBEDDED_CHECKPOINT))`
    """
    options = {"dtype": dtype, "quantization_config": quantization_of_transformer(quantization_config)}
    chosen = {name: value for name, value in options.items() if value is not None}
    model = UnifiedDiffusionModel.from_pretrained(name_or_path, **chosen, **hub)
    scheduler = scheduler_from(name_or_path, model, **hub)
    return model, scheduler, AutoTokenizer.from_pretrained(name_or_path, **hub)
