"""What happens after each step: the callback of diffusers, the draft of a streamer, the progress bar, the interrupt."""

from collections.abc import Callable, Sequence
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer

from .canvas_filling import OnStep

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
            known = {"sample": canvas, "logits": logits}
            changed = callback(pipe, step, t, {name: known[name] for name in names}).get("sample", canvas)
            if changed.shape != canvas.shape or changed.dtype != canvas.dtype:
                raise ValueError(
                    f"a callback's sample must stay {canvas.dtype} {tuple(canvas.shape)}, "
                    f"got {changed.dtype} {tuple(changed.shape)}"
                )
            canvas = changed
        if put_draft is not None:
            put_draft(canvas.cpu())
        progress.total = max(progress.total, step + 1)  # checked drafts take as many steps as they need
        progress.update()
        return canvas, not pipe.interrupt

    return on_step
