"""The parts of a pipeline from a model checkpoint: network, tokenizer and scheduler settings in one folder."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig, SchedulerMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import CONFIG_NAME

from ..conditioning.picture_memory import PICTURE_MEMORY_NAME, PictureMemory
from ..modeling.diffusers_weights import load_diffusers_model
from ..modeling.embedded import EMBEDDED_CHECKPOINT as EMBEDDED_CHECKPOINT
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..modeling.parquet_weights import find_file, find_weights
from ..schedulers.flow_matching import picture_scheduler, speech_scheduler
from ..schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
VAE, IMAGE_SCHEDULER = "vae", "image_scheduler"  # folders in the folder of a model
PICTURE_MEMORY = "picture_memory"
VOCODER, SPEECH_SCHEDULER = "vocoder", "speech_scheduler"


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


def has_image_parts(folder: str | Path) -> bool:
    """Whether a local folder of a model has an autoencoder for pictures."""
    return bool(str(folder)) and (Path(folder) / VAE / "config.json").is_file()


def load_image_parts(
    folder: str | Path, dtype: torch.dtype | str | None = None
) -> tuple[SchedulerMixin, AutoencoderMixin]:
    """Scheduler and autoencoder for pictures of a model folder; dtype None keeps the saved dtype.

    Raises:
        ValueError: there is no autoencoder, or what is there is none of diffusers.

    Usage: `scheduler, vae = load_image_parts(folder)`
    """
    if not has_image_parts(folder):
        raise ValueError(
            f"to draw, the folder of the model must hold an autoencoder of diffusers in {VAE!r} "
            f"({VAE}/config.json and its weights), got {str(folder)!r} without"
        )
    path = Path(folder) / VAE
    cls = class_of(path, "config.json", AutoencoderMixin)
    vae = cls.from_pretrained(path) if find_weights(path, {}) is None else load_diffusers_model(cls, path)
    if dtype not in (None, "auto"):
        vae.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    path = Path(folder) / IMAGE_SCHEDULER
    if not path.is_dir():
        return picture_scheduler(), vae.eval()
    return class_of(path, SchedulerMixin.config_name, SchedulerMixin).from_pretrained(path), vae.eval()


def save_image_parts(folder: str | os.PathLike[str], scheduler: SchedulerMixin, vae: AutoencoderMixin) -> None:
    """Save what `load_image_parts` reads into the folder of a model.

    Usage: `save_image_parts(folder, pipe.scheduler, pipe.vae)`
    """
    scheduler.save_pretrained(Path(folder) / IMAGE_SCHEDULER)
    vae.save_pretrained(Path(folder) / VAE)


def load_picture_memory(folder: str | Path) -> PictureMemory | None:
    """What the checkpoint in a local folder remembers of pictures; None where it remembers none.

    Raises FormatError where the file is broken.
    """
    file = Path(folder) / PICTURE_MEMORY / PICTURE_MEMORY_NAME
    return PictureMemory.load(file) if str(folder) and file.is_file() else None


def save_picture_memory(folder: str | os.PathLike[str], memory: PictureMemory | None) -> None:
    """Save what `load_picture_memory` reads, if there is anything."""
    if memory is not None:
        memory.save(Path(folder) / PICTURE_MEMORY / PICTURE_MEMORY_NAME)


def has_speech_parts(folder: str | Path) -> bool:
    """Whether a local folder of a model has a vocoder."""
    return bool(str(folder)) and (Path(folder) / VOCODER / CONFIG_NAME).is_file()


def load_speech_parts(folder: str | Path) -> tuple[SchedulerMixin, PreTrainedModel | None]:
    """Scheduler and vocoder for speech of a model folder; None without a vocoder.

    Usage: `scheduler, vocoder = load_speech_parts(folder)`
    """
    vocoder = AutoModel.from_pretrained(Path(folder) / VOCODER).eval() if has_speech_parts(folder) else None
    path = Path(folder) / SPEECH_SCHEDULER
    if not path.is_dir():
        return speech_scheduler(), vocoder
    return class_of(path, SchedulerMixin.config_name, SchedulerMixin).from_pretrained(path), vocoder


def save_speech_parts(
    folder: str | os.PathLike[str], scheduler: SchedulerMixin, vocoder: PreTrainedModel | None
) -> None:
    """Save what `load_speech_parts` reads into the folder of a model.

    Usage: `save_speech_parts(folder, pipe.scheduler, pipe.vocoder)`
    """
    scheduler.save_pretrained(Path(folder) / SPEECH_SCHEDULER)
    if vocoder is not None:
        vocoder.save_pretrained(Path(folder) / VOCODER)


def class_of(folder: Path, config_name: str, kind: type) -> Any:
    """The class of diffusers that a component's config names; ValueError unless it is of that kind."""
    name = json.loads((folder / config_name).read_text()).get("_class_name")
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise ValueError(
            f"_class_name of {folder.name}/{config_name} must be of the kind {kind.__name__} of diffusers, got {name!r}"
        )
    return cls
