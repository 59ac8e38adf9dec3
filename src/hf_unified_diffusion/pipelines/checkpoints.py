"""The parts of a pipeline from a model checkpoint: network, tokenizer and scheduler settings in one folder."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..modeling.embedded import EMBEDDED_CHECKPOINT as EMBEDDED_CHECKPOINT
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler


def is_model_folder(path: str | Path) -> bool:
    """Whether a local folder holds one model rather than a diffusers pipeline."""
    return (Path(path) / "config.json").is_file() and not (Path(path) / DiffusionPipeline.config_name).is_file()


def scheduler_from(folder: str | Path, mask_token_id: int) -> MaskedDiffusionScheduler:
    """The scheduler saved in a model folder, else the default one."""
    if folder and (Path(folder) / MaskedDiffusionScheduler.config_name).is_file():
        return MaskedDiffusionScheduler.from_pretrained(folder)
    return MaskedDiffusionScheduler(mask_token_id=mask_token_id)


def load_parts(
    folder: str | Path, dtype: torch.dtype | str | None = None
) -> tuple[UnifiedDiffusionModel, MaskedDiffusionScheduler, PreTrainedTokenizerFast]:
    """Network, scheduler and tokenizer of a model folder; dtype None keeps the saved dtype.

    Usage: `UnifiedDiffusionTextPipeline(*load_parts(EMBEDDED_CHECKPOINT))`
    """
    chosen = {} if dtype is None else {"dtype": dtype}
    model = UnifiedDiffusionModel.from_pretrained(folder, **chosen)
    return model, scheduler_from(folder, model.config.mask_token_id), AutoTokenizer.from_pretrained(folder)
