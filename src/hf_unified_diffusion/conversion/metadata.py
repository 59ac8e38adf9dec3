"""`metadata.json` of a checkpoint folder: what it is, in the few words that any tool can read (requirement 15)."""

import json
from pathlib import Path
from typing import Any

from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..quantization import bits_per_weight, num_weights

METADATA_NAME = "metadata.json"


def checkpoint_metadata(model: UnifiedDiffusionModel, supported_modalities: list[str], **facts: Any) -> dict[str, Any]:
    """The metadata of a model.

    Args:
        supported_modalities: those the model was trained for; it may have heads for more.
        facts: further entries (licence, training, data), JSON values.

    Raises ValueError for a modality the model has no head for.
    """
    unknown = sorted(set(supported_modalities) - set(model.heads))
    if unknown:
        raise ValueError(f"supported_modalities must be among {sorted(model.heads)}, got {unknown}")
    config = model.config
    quantization = getattr(config, "quantization_config", None)
    method = {"method": "none", "bit_width": 32}
    if quantization is not None:
        method = {
            "method": "arrowquant",
            "bit_width": quantization.bits,
            "bits_per_weight": round(bits_per_weight(model), 3),
        }
    return {
        "model_type": config.model_type,
        "diffusion_config": {
            "hidden_dim": config.hidden_size,
            "num_layers": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "intermediate_dim": config.intermediate_size,
        },
        "scheduler": {"type": "masked_diffusion", "num_train_steps": None, "num_inference_steps": 16},
        "supported_modalities": sorted(supported_modalities),
        "consistency_distilled": False,
        "quantization": method,
        "parameters": num_weights(model),
        "trunk_share": round(model.trunk_share(), 4),
        **facts,
    }


def write_metadata(folder: Path, metadata: dict[str, Any]) -> Path:
    """Write `metadata.json` into a checkpoint folder."""
    path = folder / METADATA_NAME
    path.write_text(json.dumps(metadata, indent=2) + "\n")
    return path
