"""What happens after each step: the callback of diffusers, the draft of a streamer, the progress bar, the interrupt."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer

from .canvas_filling import OnStep
from .diffusion_core import AfterStep
from .joint_canvases import AfterJointStep, Canvas

# (pipe, step, t, tensors) -> tensors; diffusers' PipelineCallback is one
Callback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


def tensor_names(pipe: DiffusionPipeline, callback: Callback | None, names: Sequence[str]) -> Sequence[str]:
    """The tensors that a callback asks for; ValueError for unknown ones."""
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
    known = pipe._callback_tensor_inputs
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs must be among {known}, got {unknown}")
    return names


def told(
    pipe: DiffusionPipeline,
    callback: Callback,
    names: Sequence[str],
    step: int,
    t: Tensor,
    tensors: dict[str, Tensor],
) -> Tensor:
    """Call a callback with the tensors it asked for; gives the first tensor, the sample, as the callback left it."""
    name, sample = next(iter(tensors.items()))
    changed = callback(pipe, step, t, {wanted: tensors[wanted] for wanted in names}).get(name, sample)
    check_unchanged(name, changed, sample)
    return changed


def check_unchanged(name: str, changed: Tensor, sample: Tensor) -> None:
    """Raise ValueError unless what a callback gave back has the shape and dtype of what it got."""
    if changed.shape != sample.shape or changed.dtype != sample.dtype:
        raise ValueError(
            f"a callback's {name} must stay {sample.dtype} {tuple(sample.shape)}, "
            f"got {changed.dtype} {tuple(changed.shape)}"
        )


def step_hook(
    pipe: DiffusionPipeline,
    callback: Callback | None,
    names: Sequence[str],
    streamer: BaseStreamer | None,
    progress: tqdm,
) -> OnStep:
    """The hook of one call; it ends the loop when the pipeline was interrupted."""
    put_draft = getattr(streamer, "put_draft", None)  # TextStreamer has none, TextDiffusionStreamer has

    def on_step(step: int, t: Tensor, canvas: Tensor, logits: Tensor) -> tuple[Tensor, bool]:
        if callback is not None:
            canvas = told(pipe, callback, names, step, t, {"sample": canvas, "logits": logits})
        if put_draft is not None:
            put_draft(canvas.cpu())
        progress.total = max(progress.total, step + 1)  # checked drafts take as many steps as they need
        progress.update()
        return canvas, not pipe.interrupt

    return on_step


def image_step_hook(
    pipe: DiffusionPipeline, callback: Callback | None, names: Sequence[str], timesteps: Tensor, progress: tqdm
) -> AfterStep:
    """The hook of one call that draws; `timesteps` are the scheduler's own, which a callback is told."""
    remaining = enumerate(timesteps)

    def after_step(t: Tensor, latents: Tensor, clean: Tensor) -> tuple[Tensor, bool]:
        step, timestep = next(remaining)
        if callback is not None:
            tensors = {"latents": latents, "clean_latents": clean}
            latents = told(pipe, callback, names, step, timestep, tensors)
        progress.update()
        return latents, not pipe.interrupt

    return after_step


def joint_step_hook(
    pipe: DiffusionPipeline,
    callback: Callback | None,
    names: Sequence[str],
    canvases: Sequence[Canvas],
    num_steps: int,
    progress: tqdm,
) -> AfterJointStep:
    """The hook of one call for several modalities, whose canvases a callback may change."""

    def after_step(step: int, clean: Sequence[Tensor]) -> bool:
        if callback is not None:
            samples = {canvas.modality: canvas.x_t for canvas in canvases if canvas.modality in names}
            changed = callback(pipe, step, torch.tensor(1 - (step + 1) / num_steps), dict(samples))
            for canvas in canvases:
                if canvas.modality in samples:
                    value = changed.get(canvas.modality, canvas.x_t)
                    check_unchanged(canvas.modality, value, canvas.x_t)
                    canvas.x_t = value
        progress.update()
        return not pipe.interrupt

    return after_step
