"""`metadata.json` of a checkpoint folder: what it is, in the few words that any tool can read (requirement 15).

Written by every `save_pretrained`, read and checked by every `from_pretrained`; folders without one load as well.
"""

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..quantization import bits_per_weight, num_weights
from .configuration_unified_diffusion import UnifiedDiffusionConfig

if TYPE_CHECKING:
    from .modeling_unified_diffusion import UnifiedDiffusionModel

METADATA_NAME = "metadata.json"
METADATA_VERSION = 1
MAX_METADATA_BYTES = 1 << 20
SCHEDULER_TYPES = ("masked_diffusion",)
# what follows from the model; everything else in the file is carried from load to save
_DERIVED = ("version", "model_type", "diffusion_config", "quantization", "parameters", "trunk_share")
_DEFAULTS: dict[str, Any] = {
    "scheduler": {"type": "masked_diffusion", "num_train_steps": None, "num_inference_steps": 16},
    "consistency_distilled": False,
}


def shape_of(config: UnifiedDiffusionConfig) -> dict[str, int]:
    """The shape of the trunk, under the names of requirement 15.2."""
    return {
        "hidden_dim": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "intermediate_dim": config.intermediate_size,
    }


def quantization_of(config: UnifiedDiffusionConfig) -> dict[str, Any]:
    """Method and bit width (requirement 15.6) as a config tells them; a dense network's width is its dtype's."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return {"method": "none"}
    told = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = str(getattr(told["quant_method"], "value", told["quant_method"]))
    if method == "bitsandbytes":
        return {"method": method, "bit_width": 4 if told["load_in_4bit"] else 8}
    return {"method": method, "bit_width": told.get("bits")}


def checkpoint_metadata(
    model: "UnifiedDiffusionModel", supported_modalities: Sequence[str] | None = None, **facts: Any
) -> dict[str, Any]:
    """The metadata of a model.

    Args:
        supported_modalities: those the model was trained for; it may have heads for more. None: all it has heads for.
        facts: further entries, JSON values: licence, training, data; `limits`, a sentence for a modality that is done
            badly, by which users are warned. What follows from the model cannot be set.

    Raises ValueError for a modality the model has no head for.
    """
    supported = sorted(model.heads if supported_modalities is None else supported_modalities)
    unknown = sorted(set(supported) - set(model.heads))
    if unknown:
        raise ValueError(f"supported_modalities must be among {sorted(model.heads)}, got {unknown}")
    config = model.config
    method = quantization_of(config)
    if method["method"] == "none":
        method["bit_width"] = 8 * model.dtype.itemsize
    else:
        method["bits_per_weight"] = round(bits_per_weight(model), 3)
    derived = {
        "version": METADATA_VERSION,
        "model_type": config.model_type,
        "diffusion_config": shape_of(config),
        "quantization": method,
        "parameters": num_weights(model),
        "trunk_share": round(model.trunk_share(), 4),
    }
    return {**_DEFAULTS, **facts, "supported_modalities": supported, **derived}


def write_metadata(folder: str | os.PathLike[str], metadata: dict[str, Any]) -> Path:
    """Write `metadata.json` into a checkpoint folder; it appears whole or not at all."""
    path = Path(folder) / METADATA_NAME
    partial = path.with_name(f"{METADATA_NAME}.tmp-{secrets.token_hex(4)}")
    try:
        partial.write_text(json.dumps(metadata, indent=2, allow_nan=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a `metadata.json`; a file of the first sessions, without a version, counts as version 1.

    Raises ValueError for what is no JSON object of this model type, for a later version, and for a file above 1 MiB.
    """
    size = os.path.getsize(path)
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"{METADATA_NAME} must be at most {MAX_METADATA_BYTES} bytes, got {size}")
    try:
        metadata = json.loads(Path(path).read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{METADATA_NAME} must be JSON, got {error}") from None
    if not isinstance(metadata, dict) or metadata.get("model_type") != UnifiedDiffusionConfig.model_type:
        found = metadata.get("model_type") if isinstance(metadata, dict) else type(metadata).__name__
        raise ValueError(f"{METADATA_NAME} must be of model_type {UnifiedDiffusionConfig.model_type!r}, got {found!r}")
    version = metadata.get("version", 1)
    if type(version) is not int or not 1 <= version <= METADATA_VERSION:
        raise ValueError(
            f"{METADATA_NAME} must be of version 1 to {METADATA_VERSION}, got {version!r}: a newer release may read it"
        )
    return metadata


def check_metadata(metadata: dict[str, Any], config: UnifiedDiffusionConfig) -> None:
    """Raise ValueError where a checkpoint's metadata describes another network than its config."""
    shape, expected = metadata.get("diffusion_config"), shape_of(config)
    if shape != expected:
        raise ValueError(f"diffusion_config of {METADATA_NAME} must be that of config.json, {expected}, got {shape!r}")
    supported = metadata.get("supported_modalities")
    if not isinstance(supported, list) or not set(map(str, supported)) <= set(config.modalities):
        raise ValueError(f"supported_modalities must be among {sorted(config.modalities)}, got {supported!r}")
    quantization, told = quantization_of(config), metadata.get("quantization")
    if not isinstance(told, dict) or not quantization.items() <= told.items():
        raise ValueError(f"quantization of {METADATA_NAME} must be that of config.json, {quantization}, got {told!r}")
    check_scheduler(metadata.get("scheduler"))
    limits = metadata.get("limits", {})
    if not isinstance(limits, dict) or not all(isinstance(limit, str) for limit in limits.values()):
        raise ValueError(f"limits of {METADATA_NAME} must be sentences by modality, got {limits!r}")
    distilled = metadata.get("consistency_distilled")
    if not isinstance(distilled, bool):
        raise ValueError(f"consistency_distilled of {METADATA_NAME} must be true or false, got {distilled!r}")


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError unless it is {"type", "num_train_steps", "num_inference_steps"} of requirement 15.3."""
    if not isinstance(scheduler, dict) or scheduler.get("type") not in SCHEDULER_TYPES:
        raise ValueError(f"scheduler of {METADATA_NAME} must be of a type in {SCHEDULER_TYPES}, got {scheduler!r}")
    steps = {name: scheduler.get(name) for name in ("num_train_steps", "num_inference_steps")}
    in_continuous_time = steps["num_train_steps"] is None
    counts = [steps["num_inference_steps"], *([] if in_continuous_time else [steps["num_train_steps"]])]
    if any(type(count) is not int or count < 1 for count in counts):
        raise ValueError(
            f"num_inference_steps of {METADATA_NAME} must be at least 1, num_train_steps too or null, got {steps}"
        )


def limits_of(facts: Mapping[str, Any], modalities: Iterable[str]) -> list[str]:
    """Sentences on what a checkpoint does badly of some modalities: `limits` of its metadata, by modality."""
    limits = facts.get("limits", {})
    return [f"{modality}: {limits[modality]}" for modality in modalities if modality in limits]


def carried_facts(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a later save writes again: all that does not follow from the model."""
    return {key: value for key, value in metadata.items() if key not in _DERIVED}
