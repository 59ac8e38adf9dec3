"""What a request of the engine leaves open, and how what was made is handed out."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

CHECKED_BLOCK = 8  # tokens drafted in one pass where the causal path checks them


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


def as_bytes(images: Float[Tensor, "batch 3 height width"]) -> list[UInt8[np.ndarray, "height width 3"]]:
    """Pictures in [0, 1] as arrays of their own."""
    return list((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy())
