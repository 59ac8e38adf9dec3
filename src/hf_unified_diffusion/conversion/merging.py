"""Trained parts put into a checkpoint whose other weights stay as they are, code by code."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..folders import replacing
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..quantization import QuantizedWeight
from ..quantization.modules import can_quantize, dequantize_layer, quantize_layer
from .export import SKIP_DTYPE

PROGRESS_FILE = "progress.json"


def write_part(tensors: Mapping[str, Tensor], file: Path, progress: Mapping[str, float]) -> None:
    """Write trained parts as safetensors and, beside them, how far training is; the file appears whole or not at all.

    Args:
        tensors: under the names of the network's own.

    Usage: `write_part({"decoders.audio.read.bias": bias}, Path("runs/decoder/decoder.safetensors"), {"step": 100})`
    """
    partial = file.with_suffix(".partial")
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, partial)
    partial.replace(file)
    (file.parent / PROGRESS_FILE).write_text(json.dumps(progress))


def merge_tensors(checkpoint: Path, file: Path, destination: Path, **facts: Any) -> UnifiedDiffusionModel:
    """Put trained parts into a checkpoint: all other weights and files stay as they are, code by code.

    Condition sources and decoders that it lacks are added. Where the checkpoint is quantized, the layers of a decoder
    but its last get the bits of its policy, all other layers of the trained parts 8. The destination, which may be the
    checkpoint itself, is replaced at the end.

    Args:
        file: safetensors, under the names of the network's own tensors.
        facts: for `metadata.json`; `training` joins what is there.

    Raises ValueError for tensors that the network has no place for.

    Usage: `merge_tensors(EMBEDDED_CHECKPOINT, Path("runs/memory/conditioner.safetensors"), Path("steered"))`
    """
    tensors = load_file(file)
    model = UnifiedDiffusionModel.from_pretrained(checkpoint)
    parts = sorted({name.rpartition(".")[0] for name in tensors})
    _add_parts(model, parts, tensors)
    for name in parts:
        layer = model.get_submodule(name) if name in dict(model.named_modules()) else None
        if isinstance(layer, QuantizedWeight):
            model.set_submodule(name, dequantize_layer(layer))
    known = {name: value.shape for name, value in model.state_dict().items()}
    wrong = sorted(name for name, value in tensors.items() if known.get(name) != value.shape)
    if wrong:
        raise ValueError(f"tensors must be of the network, with its shapes, got {wrong}")
    model.load_state_dict(tensors, strict=False)
    _quantize_parts(model, parts)
    training = {**model.checkpoint_facts.get("training", {}), **facts.get("training", {})}
    model.checkpoint_facts |= {**facts, "training": training}
    model.skips.to(SKIP_DTYPE)
    with replacing(destination) as partial:
        shutil.copytree(checkpoint, partial)
        model.save_pretrained(partial)
    return model


def _add_parts(model: UnifiedDiffusionModel, parts: Collection[str], tensors: Mapping[str, Tensor]) -> None:
    """Condition sources, and decoders of the shapes that their tensors tell; a decoder that is there is replaced."""
    for name in parts:
        prefix, _, source = name.rpartition(".")
        if prefix == "condition_projections" and source not in model.condition_projections:
            model.add_condition_source(source, tensors[f"{name}.weight"].shape[1])
    for modality in sorted({name.split(".")[1] for name in parts if name.startswith("decoders.")}):
        told = {name.removeprefix(f"decoders.{modality}."): value.shape for name, value in tensors.items()}
        width = model.config.continuous_width(modality)
        sizes = [told.get(name, (0,))[0] for name in ("read.bias", "blocks.0.up.bias", "write.bias")]
        if width is None or min(sizes) < 1:
            raise ValueError(
                f"a decoder must be of a continuous modality and whole, got {modality!r} and {sorted(told)}"
            )
        blocks = {name.split(".")[1] for name in told if name.startswith("blocks.")}
        model.add_decoder(modality, width // sizes[2], sizes[0], sizes[1], len(blocks))


def _quantize_parts(model: UnifiedDiffusionModel, parts: Collection[str]) -> None:
    """Quantize the layers that were merged, if the rest is, and write what they got into the configuration."""
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is None:
        return
    kept = [name for name in parts if can_quantize(model.get_submodule(name))]
    fine = {name for name in kept if not name.startswith("decoders.") or name.endswith(".write")}
    quantization.int8_modules = sorted({*quantization.int8_modules, *fine})
    bits = quantization.bits_of_layers(model)
    dtype = model.dtype
    for name in kept:
        if name in bits:
            layer = quantize_layer(model.get_submodule(name), bits[name], quantization.group_size, dtype)
            model.set_submodule(name, layer)
