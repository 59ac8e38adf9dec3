"""The readout of a modern Hopfield network (arXiv:2008.02217)."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def hopfield_readout(
    query: Float[Tensor, "*batch width"],
    keys: Float[Tensor, "*batch count width"],
    values: Float[Tensor, "*batch count out"],
    beta: float,
    mask: Bool[Tensor, "*batch count"] | None = None,
) -> tuple[Float[Tensor, "*batch out"], Float[Tensor, "*batch count"]]:
    """softmax(beta q K^T) V, and the softmax's weights; with V = K one step down the network's energy.

    Args:
        beta: at least 0; at 0 every key counts the same, at infinity only the nearest.
        mask: False for padding; a row without any real key reads out zeros.

    Raises ValueError for a beta that is negative, infinite or NaN.

    Usage: `readout, weights = hopfield_readout(query, keys, keys, beta=16.0)`
    """
    check_beta(beta)
    scores = beta * torch.einsum("...d,...kd->...k", query, keys)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    highest = scores.amax(dim=-1, keepdim=True) if scores.shape[-1] else scores.new_zeros(*scores.shape[:-1], 1)
    weights = torch.exp(scores - highest.masked_fill(highest.isneginf(), 0))
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return torch.einsum("...k,...kv->...v", weights, values), weights


def hopfield_energy(
    state: Float[Tensor, "*batch width"], keys: Float[Tensor, "*batch count width"], beta: float
) -> Float[Tensor, "*batch"]:
    """-1/beta log sum exp(beta q K^T) + |q|^2 / 2, which every readout with V = K lowers (its equation 2)."""
    scores = beta * torch.einsum("...d,...kd->...k", state, keys)
    return state.square().sum(-1) / 2 - torch.logsumexp(scores, dim=-1) / beta


def check_beta(beta: float) -> None:
    """Raise ValueError unless it is a finite number of at least 0."""
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not math.isfinite(beta) or beta < 0:
        raise ValueError(f"beta must be a finite number of at least 0, got {beta!r}")
