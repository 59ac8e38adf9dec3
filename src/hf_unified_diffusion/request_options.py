"""What a request of the engine leaves open, and how what was made is handed out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

CHECKED_BLOCK = 4  # tokens drafted in one pass where the causal path checks them (decision 32)


def steps_for(length: int, num_steps: int | None, options: dict[str, Any]) -> dict[str, Any]:
    """How a text of `length` tokens is denoised where the caller leaves it open."""
    if num_steps is not None:
        return {"num_inference_steps": num_steps}
    plain = options.get("suffix") is not None or options.get("canvas") is not None
    plain = plain or options.get("guidance_scale", 1) != 1 or bool(options.get("energies"))
    if options.setdefault("check_drafts", not plain):
        block_length = options.setdefault("block_length", CHECKED_BLOCK)
        return {"num_inference_steps": -(-length // (block_length or length))}
    return {"num_inference_steps": -(-length // 2)}


def check_left_out(modality: str, given: dict[str, Any]) -> None:
    """Raise ValueError where an argument was given that a modality does not have here."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} must be left out for {modality}, got {value!r}")


def handed_out(output: Any, modality: str) -> list[Any]:
    """What a pipeline made, one entry a row, in the engine's own form."""
    if modality == "image":
        return as_bytes(output.images)
    return list(output.audios if modality == "audio" else output.texts)


def told_together(prompt: Any, asked: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """The options of the joint pipeline: without text among what is asked for, sound and face say the prompt."""
    said = options.get("text") is None and "text" not in asked and {"audio", "avatar"} & set(asked)
    if not said or prompt is None or options.get("audio") is not None:
        return {**options, "prompt": prompt}
    return {**options, "text": prompt, "prompt": prompt if "image" in asked else None}


def made_together(output: Any, many: bool) -> dict[str, Any]:
    """What the joint pipeline made by modality, one entry a row, or the only one."""
    found = {"text": output.texts, "audio": output.audio, "avatar": output.avatar}
    if output.images is not None:
        found["image"] = [np.asarray(image) for image in output.images]
    rows = {name: list(values) for name, values in found.items() if values is not None}
    return rows if many else {name: values[0] for name, values in rows.items()}


def as_bytes(images: Float[Tensor, "batch 3 height width"]) -> list[UInt8[np.ndarray, "height width 3"]]:
    """Pictures in [0, 1] as arrays of their own."""
    return list((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy())
