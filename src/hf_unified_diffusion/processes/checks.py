"""What every process asks of its input."""

import torch
from torch import Tensor


def check_time(t: Tensor, x: Tensor, name: str = "t") -> None:
    """Raise ValueError unless t is a float tensor in [0, 1] whose shape begins x's shape."""
    if not t.is_floating_point():
        raise ValueError(f"{name} must be a float tensor, got {t.dtype}")
    if t.ndim == 0 or t.shape != x.shape[: t.ndim]:
        raise ValueError(f"{name} must have the leading axes of the sample {tuple(x.shape)}, got {tuple(t.shape)}")
    if not ((t >= 0) & (t <= 1)).all():  # also false for NaN
        raise ValueError(f"{name} must be in [0, 1], got values from {t.min().item():g} to {t.max().item():g}")


def check_interval(t: Tensor, s: Tensor, x: Tensor) -> None:
    """Raise ValueError unless 0 <= s <= t <= 1 with t above 0, both shaped as `check_time` asks."""
    check_time(t, x)
    check_time(s, x, "s")
    if s.shape != t.shape or not ((s <= t) & (t > 0)).all():
        raise ValueError(f"s must be at most t, and t above 0, with one shape, got s={s.tolist()} and t={t.tolist()}")


def check_tokens(x: Tensor, name: str) -> None:
    """Raise ValueError unless x holds token ids (batch, length) of an integer dtype."""
    if x.ndim != 2 or x.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be int64 or int32 (batch, length), got {x.dtype} {tuple(x.shape)}")


def check_continuous(x: Tensor, name: str) -> None:
    """Raise ValueError unless x is floating point with a batch axis and at least one more."""
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"{name} must be floating point with at least two axes, got {x.dtype} {tuple(x.shape)}")


def check_logits(clean: Tensor, x: Tensor) -> None:
    """Raise ValueError unless clean holds float logits over a vocabulary for each token of x."""
    if not clean.is_floating_point() or clean.shape[:-1] != x.shape:
        raise ValueError(f"logits must be float {tuple(x.shape)} + (vocab,), got {clean.dtype} {tuple(clean.shape)}")


def over(t: Tensor, x: Tensor) -> Tensor:
    """t with trailing axes so that it broadcasts over x: (B,) over (B, C, H, W) gives (B, 1, 1, 1)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
