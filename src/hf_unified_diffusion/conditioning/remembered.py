"""A memory of pictures as a denoiser, and another denoiser that it steers."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import Condition, Denoiser
from ..processes import GaussianFlow
from .energy import check_scale


def remembered(
    samples: Float[Tensor, "batch count *shape"],
    weights: Float[Tensor, "batch count"],
    flow: GaussianFlow,
) -> Denoiser:
    """E[x_0 | x_t] where x_0 is known to be one of a row's samples: the exact denoiser of a memory.

    Sample m counts by softmax(log weight - |x_t - (1 - sigma) m|^2 / (2 sigma^2)), which for samples of one length is
    the readout of a Hopfield network whose beta grows as the noise falls (arXiv:2008.02217, eq. 3).

    Args:
        samples: what is remembered, the same number a row.
        weights: how likely each is beforehand, at least 0; 0 for padding. A row without any estimates zeros.

    Raises:
        ValueError: weights of another shape, below 0, or not finite; when called, an x_t of another shape.

    Usage: `denoiser = remembered(latents, torch.ones(1, 4), GaussianFlow())`
    """
    if weights.shape != samples.shape[:2] or not bool((weights >= 0).all() & weights.isfinite().all()):
        raise ValueError(
            f"weights must be finite, at least 0, and one a sample, shape {tuple(samples.shape[:2])}, "
            f"got {tuple(weights.shape)} from {weights.min():g} to {weights.max():g}"
        )
    flat, log_weights = samples.flatten(2), weights.log()
    has_any = (weights > 0).any(dim=1, keepdim=True)

    def denoise(
        x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch *shape"]:
        if x_t.shape != samples.shape[:1] + samples.shape[2:]:
            raise ValueError(f"x_t must be of the samples' shape {tuple(samples.shape)}, got {tuple(x_t.shape)}")
        sigma, signal = (factor.to(flat)[:, None] for factor in (flow.noise_std(t), flow.signal(t)))
        noise = x_t.to(flat).reshape(len(x_t), 1, -1) - signal[..., None] * flat
        logits = log_weights.to(flat) - noise.square().sum(dim=-1) / (2 * sigma.square())
        posterior = logits.masked_fill(~has_any, 0.0).softmax(dim=1) * has_any
        return torch.einsum("bk,bkd->bd", posterior, flat).view_as(x_t)

    return denoise


def steered_by_memory(
    denoiser: Denoiser,
    samples: Float[Tensor, "batch count *shape"],
    weights: Float[Tensor, "batch count"],
    strength: float,
    flow: GaussianFlow,
) -> Denoiser:
    """Lead a denoiser of continuous data by what is remembered, most where the noise is strong.

    clean + min(1, 2 strength sigma) (memory - clean): composition, form and colours, which are decided first, come from
    the memory, and what is made of them from the denoiser. Rows whose weights are all 0 stay as they are.

    Args:
        samples, weights: as of `remembered`.
        strength: 0 is the denoiser itself; at 1 the memory alone is asked while more than half is noise; at infinity
            what comes out is a sample.

    Raises:
        ValueError: for a strength that is negative, infinite or NaN; as `remembered` does.

    Usage: `denoiser = steered_by_memory(model, latents, torch.ones(1, 4), 1.0, GaussianFlow())`
    """
    check_scale("memory_strength", strength)
    memory = remembered(samples, weights, flow)
    if strength == 0:
        return denoiser
    has_any = (weights > 0).any(dim=1)

    def denoise(
        x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch *shape"]:
        share = (2 * strength * flow.noise_std(t)).clamp(max=1) * has_any.to(t)
        recalled = memory(x_t.to(samples), t, condition).to(x_t.dtype)
        if bool((share == 1).all()):  # nobody would hear the denoiser
            return recalled
        clean = denoiser(x_t, t, condition)
        share = share.view(-1, *[1] * (x_t.ndim - 1)).to(clean.dtype)
        # bit for bit the same beside rows for which the denoiser is heard
        return torch.where(share == 1, recalled, clean + share * (recalled - clean))

    return denoise
