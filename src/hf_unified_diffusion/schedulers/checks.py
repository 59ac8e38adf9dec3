"""What the masked-diffusion scheduler asks of its settings and inputs."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .commit import ORDERINGS


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Raise ValueError unless temperature >= 0 is finite, top_k >= 0 is an integer and top_p is in (0, 1]."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
    check_integer(top_k, "top_k", 0)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")


def check_committing(
    ordering: str, entropy_bound: float | None, confidence_threshold: float | None, remask_rate: float
) -> None:
    """Raise ValueError for an unknown ordering, a number out of range, or bound and threshold together."""
    if ordering not in ORDERINGS:
        raise ValueError(f"ordering must be one of {sorted(ORDERINGS)}, got {ordering!r}")
    if entropy_bound is not None and not (math.isfinite(entropy_bound) and entropy_bound >= 0):
        raise ValueError(f"entropy_bound must be None or finite nats of at least 0, got {entropy_bound}")
    if confidence_threshold is not None and not 0 <= confidence_threshold <= 1:
        raise ValueError(f"confidence_threshold must be None or in [0, 1], got {confidence_threshold}")
    if entropy_bound is not None and confidence_threshold is not None:
        raise ValueError(
            "entropy_bound and confidence_threshold must not be set together, "
            f"got entropy_bound={entropy_bound} and confidence_threshold={confidence_threshold}"
        )
    if not 0 <= remask_rate <= 1:
        raise ValueError(f"remask_rate must be in [0, 1], got {remask_rate}")


def check_integer(value: int | None, name: str, least: int) -> int:
    """The value, or a ValueError unless it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def check_timesteps(timesteps: Sequence[float]) -> None:
    """Raise ValueError unless the timesteps fall strictly within (0, 1]."""
    inside = all(0 < t <= 1 for t in timesteps)
    falling = all(t > s for t, s in pairwise(timesteps))
    if not timesteps or not inside or not falling:
        raise ValueError(f"timesteps must fall strictly within (0, 1], got {list(timesteps)}")


def check_sample(sample: Tensor) -> None:
    """Raise ValueError unless sample is int64 or int32 (batch, length)."""
    if sample.ndim != 2 or sample.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"sample must be int64 or int32 (batch, length), got {sample.dtype} {tuple(sample.shape)}")


def check_logits(model_output: Tensor, sample: Tensor, mask_token_id: int) -> None:
    """Raise ValueError unless model_output is float (batch, length, vocab) over the sample and has the mask token."""
    if not model_output.is_floating_point():
        raise ValueError(f"model_output must be floating point, got {model_output.dtype}")
    if model_output.ndim != 3 or model_output.shape[:2] != sample.shape:
        expected = f"{tuple(sample.shape)} + (vocab,)"
        raise ValueError(f"model_output must have the shape {expected}, got {tuple(model_output.shape)}")
    if mask_token_id >= model_output.shape[-1]:
        raise ValueError(f"mask_token_id must be below the vocabulary of {model_output.shape[-1]}, got {mask_token_id}")


def check_like_sample(tensor: Tensor | None, sample: Tensor, name: str, floating: bool) -> None:
    """Raise ValueError unless an optional tensor has the sample's shape and is float, or boolean."""
    if tensor is None:
        return
    right = tensor.is_floating_point() if floating else tensor.dtype == torch.bool
    if not right or tensor.shape != sample.shape:
        wanted = f"{'float' if floating else 'bool'} {tuple(sample.shape)}"
        raise ValueError(f"{name} must be {wanted}, got {tensor.dtype} {tuple(tensor.shape)}")


def check_proposal(proposal: Tensor | None, sample: Tensor) -> None:
    """Raise ValueError unless an optional proposal has the sample's shape and dtype."""
    if proposal is not None and (proposal.shape != sample.shape or proposal.dtype != sample.dtype):
        wanted = f"{sample.dtype} {tuple(sample.shape)}"
        raise ValueError(f"proposal must be {wanted}, got {proposal.dtype} {tuple(proposal.shape)}")
