"""How much noise there is at time t: one number from 0 (clean) to 1 (noise), for masks and Gaussian noise alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

Curve = Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]

# MDLM's log-linear schedule stops this far below 1 (arXiv:2406.07524, appendix), so ends are compared no finer.
LOG_LINEAR_GAP = 1e-3


@dataclass(frozen=True)
class Schedule:
    """A rising curve noise(t) with noise(0) = 0 and noise(1) = 1, and its slope.

    For masked diffusion noise(t) is the probability that a token is hidden; for Gaussian noise it is the standard
    deviation. Any pair of functions makes a custom schedule.

    Attributes:
        noise: float tensor of times in [0, 1] -> noise level in [0, 1], same shape; never falling.
        slope: its derivative with respect to t, same shape.

    Raises:
        ValueError: if the ends are more than 0.001 from 0 and 1, or the curve falls somewhere, or is not finite.

    Usage: `Schedule(noise=lambda t: t**2, slope=lambda t: 2 * t)`
    """

    noise: Curve
    slope: Curve

    def __post_init__(self):
        levels = self.noise(torch.linspace(0, 1, 1025, dtype=torch.float64))
        if not levels.isfinite().all():
            raise ValueError("a schedule must be finite on [0, 1], got a level that is not")
        ends = (levels[0].item(), levels[-1].item())
        if abs(ends[0]) > 1e-6 or abs(ends[1] - 1) > LOG_LINEAR_GAP * (1 + 1e-6):
            raise ValueError(f"a schedule must run from 0 to 1, got {ends[0]:g} to {ends[1]:g}")
        steepest_fall = levels.diff().min().item()
        if steepest_fall < 0:
            raise ValueError(f"a schedule must never fall, got a fall of {-steepest_fall:g}")

    def signal(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """1 - noise(t): the probability that a token survives, or the factor on the clean sample."""
        return 1 - self.noise(t)

    def weight(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """NELBO weight of a masked token at time t, noise'/noise (arXiv:2406.07524, eq. 10); infinite at t=0."""
        return self.slope(t) / self.noise(t)

    def time_at(self, level: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The earliest time at which the noise reaches `level` in [0, 1], to 1e-15, by bisection."""
        target = level.double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(52):  # one bit of a float64 mantissa each
            middle = (low + high) / 2
            reached = self.noise(middle) >= target
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        return high.to(level.dtype)


def _identity(t: Tensor) -> Tensor:
    return t.clone()


def _sine(t: Tensor) -> Tensor:
    return torch.sin(t * (math.pi / 2))


def _sine_slope(t: Tensor) -> Tensor:
    return torch.cos(t * (math.pi / 2)) * (math.pi / 2)


def _log_linear(t: Tensor) -> Tensor:
    total_noise = -torch.log1p(-(1 - LOG_LINEAR_GAP) * t)
    return -torch.expm1(-total_noise)


def _log_linear_slope(t: Tensor) -> Tensor:
    return torch.full_like(t, 1 - LOG_LINEAR_GAP)


# Linear: every step of a uniform grid uncovers as many tokens. Cosine: few tokens are uncovered first, many last
# (MaskGIT, arXiv:2202.04200). Log-linear: minus the log of what survives is log-linear in t (arXiv:2406.07524).
LINEAR = Schedule(noise=_identity, slope=torch.ones_like)
COSINE = Schedule(noise=_sine, slope=_sine_slope)
LOG_LINEAR = Schedule(noise=_log_linear, slope=_log_linear_slope)
SCHEDULES = {"linear": LINEAR, "cosine": COSINE, "log_linear": LOG_LINEAR}


def differentiated(noise: Curve) -> Schedule:
    """A custom schedule from its noise curve alone; the slope comes from automatic differentiation.

    Usage: `differentiated(lambda t: t**3)`
    """
    return Schedule(noise, partial(_automatic_slope, noise))


def _automatic_slope(noise: Curve, t: Tensor) -> Tensor:
    return torch.func.grad(lambda at: noise(at).sum())(t)


def tabulated(points: Sequence[Sequence[float]]) -> Schedule:
    """A custom schedule by straight lines between (time, noise) points; it can be stored in a JSON config.

    Raises:
        ValueError: unless there are at least two points, with rising times from 0 to 1 and noise from 0 to 1.

    Usage: `tabulated([(0, 0), (0.5, 0.8), (1, 1)])`
    """
    if len(points) < 2 or any(len(point) != 2 for point in points):
        raise ValueError(f"a tabulated schedule needs at least two (time, noise) points, got {points!r}")
    times, levels = torch.tensor(points, dtype=torch.float64).T.contiguous()
    if times[0] != 0 or times[-1] != 1 or not (times.diff() > 0).all():
        raise ValueError(f"times of a tabulated schedule must rise from 0 to 1, got {times.tolist()}")
    slopes = levels.diff() / times.diff()
    return Schedule(partial(_on_lines, times, levels, slopes), partial(_slope_of_lines, times, slopes))


def _piece(times: Tensor, t: Tensor) -> Tensor:
    return torch.searchsorted(times.to(t.device), t.double().contiguous(), right=True).clamp(1, len(times) - 1) - 1


def _on_lines(times: Tensor, levels: Tensor, slopes: Tensor, t: Tensor) -> Tensor:
    piece = _piece(times, t)
    times, levels, slopes = times.to(t.device), levels.to(t.device), slopes.to(t.device)
    return (levels[piece] + slopes[piece] * (t.double() - times[piece])).to(t.dtype)


def _slope_of_lines(times: Tensor, slopes: Tensor, t: Tensor) -> Tensor:
    return slopes.to(t.device)[_piece(times, t)].to(t.dtype)


def find_schedule(name_or_points: str | Sequence[Sequence[float]]) -> Schedule:
    """The schedule of a config entry: a name of SCHEDULES, or the points of a tabulated one.

    Raises:
        ValueError: for an unknown name or invalid points.

    Usage: `find_schedule("cosine")`
    """
    if not isinstance(name_or_points, str):
        return tabulated(name_or_points)
    if name_or_points not in SCHEDULES:
        raise ValueError(f"schedule must be one of {sorted(SCHEDULES)} or a list of points, got {name_or_points!r}")
    return SCHEDULES[name_or_points]
