"""Score composition: one denoiser from several."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..contracts import Condition, Denoiser


def composed(denoisers: Sequence[Denoiser], weights: Sequence[float]) -> Denoiser:
    """A weighted sum of what several denoisers say: adapters, prompts, models (arXiv:2206.01714).

    For continuous data the clean estimates are summed, and with them scores and velocities; for tokens the
    log-probabilities are, which is the product of the distributions to these powers, normalized. A token that one of
    them with a weight above 0 rules out is ruled out.

    Args:
        denoisers: each sees the condition it is bound to; the one of the call goes to all.
        weights: finite, of sum 1 (negative ones lead away). Weights of another sum would not estimate a clean sample.

    Raises:
        ValueError: for no denoisers, another number of weights, or weights that break the rule.

    Usage: `denoiser = composed([formal, friendly], [0.7, 0.3])`
    """
    if not denoisers or len(weights) != len(denoisers):
        raise ValueError(f"weights must be as many as the denoisers, at least 1, got {len(weights)}, {len(denoisers)}")
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"weights must be finite numbers, got {weight!r}")
    if not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise ValueError(f"weights must sum to 1, got {list(weights)} with the sum {sum(weights)}")
    parts = [(denoiser, weight) for denoiser, weight in zip(denoisers, weights, strict=True) if weight != 0]
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]

    def denoise(
        x_t: Shaped[Tensor, "batch *shape"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch *out"]:
        total, ruled_out = torch.zeros(()), torch.zeros((), dtype=torch.bool)
        for denoiser, weight in parts:
            clean = denoiser(x_t, t, condition)
            clean = clean.to(torch.promote_types(clean.dtype, torch.float32))
            if not x_t.is_floating_point():  # logits carry any constant; log-probabilities do not
                clean = clean.log_softmax(dim=-1)
            is_out = clean.isneginf()
            ruled_out = ruled_out.to(clean.device) | (is_out & (weight > 0))
            total = total.to(clean) + weight * clean.masked_fill(is_out, 0.0)  # -inf - -inf would be NaN
        return total.masked_fill(ruled_out, -torch.inf)

    return denoise
