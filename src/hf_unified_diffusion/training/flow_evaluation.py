"""Held-out error of continuous modalities, at fixed times and with fixed noise."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator

from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .flow_layout import FLOW, latent_segments
from .latent_data import LatentBatch

TIMES = (0.3, 0.6, 0.9)


@torch.no_grad()
def flow_errors(
    model: UnifiedDiffusionModel, batches: Sequence[LatentBatch], times: Sequence[float] = TIMES, seed: int = 0
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


def mean_error(model: UnifiedDiffusionModel, batches: Sequence[LatentBatch], time: float, seed: int) -> float:
    """Mean squared error of x_0 at one time, over all numbers of all samples; the noise follows from the seed."""
    generator, total, numbers = Generator().manual_seed(seed), 0.0, 0
    for batch in batches:
        t = torch.full((len(batch.values),), time)
        segments = [segment.to(model.device) for segment in latent_segments(batch, t, generator)]
        (_, hidden), _ = model.features(segments)
        clean = model.decode(hidden, batch.modality).float().cpu()
        total += float(FLOW.loss(clean, batch.values, batch.values, t).sum()) * batch.values[0].numel()
        numbers += batch.values.numel()
    return total / numbers


def with_others_captions(batch: LatentBatch) -> LatentBatch:
    """Each sample with the context of the one before it."""
    mask = batch.context_mask
    return replace(batch, context=batch.context.roll(1, 0), context_mask=None if mask is None else mask.roll(1, 0))
