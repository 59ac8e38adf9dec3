"""Which times to train at and to sample at."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from .schedules import Schedule

Warp = Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]


def _uniform(u: Tensor) -> Tensor:
    return u


def _quadratic(u: Tensor) -> Tensor:
    return u.square()


def _cosine(u: Tensor) -> Tensor:
    return 1 - torch.cos(u * (math.pi / 2))


# A warp sends [0, 1] onto [0, 1], rising: it makes a uniform grid non-uniform. Quadratic and cosine put more steps near
# t=0.
WARPS: dict[str, Warp] = {"uniform": _uniform, "quadratic": _quadratic, "cosine": _cosine}


def shifted(shift: float) -> Warp:
    """More steps near the noise for shift > 1, t = shift u / (1 + (shift - 1) u) (arXiv:2403.03206, eq. 23).

    Raises:
        ValueError: unless shift is positive and finite.

    Usage: `time_grid(8, warp=shifted(3.0))`
    """
    if not (shift > 0 and math.isfinite(shift)):
        raise ValueError(f"shift must be positive and finite, got {shift}")
    return lambda u: shift * u / (1 + (shift - 1) * u)


def find_warp(name: str) -> Warp:
    """The warp of that name; ValueError for an unknown one."""
    if name not in WARPS:
        raise ValueError(f"spacing must be one of {sorted(WARPS)}, got {name!r}")
    return WARPS[name]


def time_grid(num_steps: int, warp: Warp = _uniform, device: str | torch.device = "cpu") -> Float[Tensor, "edges"]:
    """num_steps + 1 falling times from 1 to 0, float64: step i goes from times[i] to times[i + 1].

    Raises:
        ValueError: for num_steps below 1 or a warp that does not rise from 0 to 1.

    Usage: `time_grid(16)` for uniform steps, `time_grid(16, shifted(3.0))` for non-uniform ones
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    times = warp(torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps)
    if abs(times[0].item() - 1) > 1e-9 or abs(times[-1].item()) > 1e-9 or not (times.diff() < 0).all():
        raise ValueError(f"a warp must rise from 0 to 1 without a rest, got {times.flip(0).tolist()}")
    return times.to(device)


def antithetic_times(
    count: int, generator: Generator, low: float = 0.0, high: float = 1.0, rank: int = 0, world_size: int = 1
) -> Float[Tensor, "count"]:
    """One time in each of `count` equal slices of (low, high], shuffled, float32.

    Each time alone is uniform, together they cover the range evenly, so the loss of a batch varies less
    (arXiv:2107.00630; MDLM calls them antithetic). `low` and `high` clip the range (arXiv:2503.09573).

    Args:
        count: how many, at least 1.
        generator: on whose device the times are made.
        low, high: 0 <= low < high <= 1.
        rank, world_size: with several processes whose generators are in the same state, each takes its share of
            count * world_size slices.

    Raises:
        ValueError: for a count below 1, a range that is not one, or a rank outside the world.

    Usage: `t = antithetic_times(len(x_0), generator, low=0.05)`
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if not 0 <= low < high <= 1:
        raise ValueError(f"times must be drawn from 0 <= low < high <= 1, got low={low} and high={high}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
    total = count * world_size
    jitter = torch.rand(total, generator=generator, device=generator.device, dtype=torch.float64)
    slices = torch.randperm(total, generator=generator, device=generator.device)
    u = 1 - (slices + jitter) / total  # in (0, 1]: the weight 1/t is infinite at 0
    return (low + (high - low) * u)[rank::world_size].float()


def logit_normal_times(
    count: int, generator: Generator, mean: float = 0.0, std: float = 1.0, warp: Warp = _uniform
) -> Float[Tensor, "count"]:
    """Times whose logits are normal, then warped; one in each of `count` parts of equal probability, shuffled, float32.

    The middle of the way, where the network has most to learn, is seen most (arXiv:2403.03206, section 3.1).

    Raises:
        ValueError: for a count below 1 or a std that is not positive.

    Usage: `t = logit_normal_times(len(x_0), generator, warp=shifted(2.0))`
    """
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    u = antithetic_times(count, generator).double()
    return warp(torch.sigmoid(mean + std * torch.special.ndtri(u))).float()


def complementary_times(t: Float[Tensor, "..."], schedule: Schedule) -> Float[Tensor, "..."]:
    """The times at which as many tokens survive as are hidden at t: noise(t') = 1 - noise(t).

    Usage: `t = torch.cat([t, complementary_times(t, process.schedule)])`, beside `complementary_masks`
    """
    return schedule.time_at(schedule.signal(t))


def complementary_masks(hidden: Bool[Tensor, "batch length"]) -> Bool[Tensor, "twice_batch length"]:
    """The masks followed by their opposites: each token is hidden in exactly one of the two, so every token teaches.

    A mask drawn at noise level m has a complement at level 1 - m: train it at `complementary_times`.

    Usage: `x_t = torch.where(complementary_masks(hidden), mask_token_id, x_0.repeat(2, 1))`
    """
    return torch.cat([hidden, ~hidden])
