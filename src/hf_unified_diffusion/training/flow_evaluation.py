"""Held-out error of continuous modalities, at fixed times and with fixed noise."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..codecs.speech_layout import lay_out, stacked_rows
from ..contracts import Segment
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .flow_layout import FLOW, latent_segments
from .latent_data import LatentBatch
from .speech_data import SpeechBatch

TIMES = (0.3, 0.6, 0.9, 1.0)  # at 1 all that is known was told: captions and phonemes are read or not


@torch.no_grad()
def flow_errors(
    model: UnifiedDiffusionModel,
    batches: Sequence[LatentBatch | SpeechBatch],
    times: Sequence[float] = TIMES,
    seed: int = 0,
) -> dict[str, float]:
    """Mean squared error of x_0, which is 1 for a network that knows nothing of latents of unit variance.

    Returns:
        `t0.3` and so on, the error at each time; `clean`, their mean; `velocity`, the mean of the errors over t^2;
        `shuffled`, as `clean`, but each sample with the caption of another: what captions are worth is the difference.

    Raises:
        ValueError: no batches, or a time outside (0, 1].

    Usage: `flow_errors(model, [source.batch(i, seed=0) for i in range(4)])["clean"]`
    """
    if not batches:
        raise ValueError("held-out errors need at least one batch, got none")
    if not all(0 < t <= 1 for t in times):
        raise ValueError(f"times must be in (0, 1], got {list(times)}")
    was_training = model.training
    model.eval()
    try:
        errors = [mean_error(model, batches, t, seed) for t in times]
        shuffled = [mean_error(model, list(map(with_others_captions, batches)), t, seed) for t in times]
    finally:
        model.train(was_training)
    found = {f"t{t:g}": error for t, error in zip(times, errors, strict=True)}
    velocity = [error / t**2 for t, error in zip(times, errors, strict=True)]
    means = {"clean": errors, "velocity": velocity, "shuffled": shuffled}
    return found | {name: sum(values) / len(times) for name, values in means.items()}


def mean_error(
    model: UnifiedDiffusionModel, batches: Sequence[LatentBatch | SpeechBatch], time: float, seed: int
) -> float:
    """Mean squared error of x_0 at one time, over all numbers of all samples; the noise follows from the seed."""
    generator, total, numbers = Generator().manual_seed(seed), 0.0, 0
    for batch in batches:
        x_0, clean = estimated(model, batch, time, generator)
        total += float((clean - x_0).square().sum())
        numbers += x_0.numel()
    return total / numbers


def estimated(
    model: UnifiedDiffusionModel,
    batch: LatentBatch | SpeechBatch,
    time: float,
    generator: Generator,
    face: bool = False,
) -> tuple[Float[Tensor, "tokens width"], Float[Tensor, "tokens width"]]:
    """The real tokens of a batch, and what the network makes of them noised to a time; of speech sound or face."""
    contexts, canvas, x_0 = noisy_batch(batch, time, generator, face)
    segments = [segment.to(model.device) for segment in (*contexts, canvas)]
    hidden, _ = model.features(segments)
    clean = model.estimate(hidden[-1], segments[-1]).float().cpu()
    real = torch.ones(x_0.shape[:2], dtype=torch.bool) if canvas.mask is None else canvas.mask
    return x_0[real], clean[real]


def noisy_batch(
    batch: LatentBatch | SpeechBatch, time: float, generator: Generator, face: bool = False
) -> tuple[list[Segment], Segment, Float[Tensor, "batch tokens width"]]:
    """What is told of samples, their canvas at a time, and what is clean; of speech the sound alone, or the face."""
    if isinstance(batch, SpeechBatch):
        clips = batch.faces if face else batch.sounds
        if clips is None:
            raise ValueError("faces must come with the speech to be noised, got none")
        layout, x_0 = lay_out(batch.rows, batch.bos_token_id), stacked_rows(clips, "cpu")
        t = torch.full((len(x_0),), time)
        x_t = FLOW.corrupt(x_0, t, generator)
        modality = "avatar" if face else batch.modality
        canvas = Segment(modality, x_t, time=t, positions=layout.positions, mask=layout.mask)
        return layout.contexts, canvas, x_0
    t = torch.full((len(batch.values),), time)
    context, canvas = latent_segments(batch, t, generator)
    return [context], canvas, batch.values


def with_others_captions(batch: LatentBatch | SpeechBatch) -> LatentBatch | SpeechBatch:
    """Each sample with the context of the one before it; each utterance with its phonemes."""
    if isinstance(batch, SpeechBatch):
        return batch.with_others_texts()
    mask = batch.context_mask
    return replace(batch, context=batch.context.roll(1, 0), context_mask=None if mask is None else mask.roll(1, 0))
