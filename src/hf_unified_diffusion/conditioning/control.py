"""ControlNets: from a denoiser to the same denoiser under a hint."""

import math
from typing import Protocol, Self, TypeVar

from jaxtyping import Float, Shaped
from torch import Tensor

from ..contracts import Condition, Segment
from ..modeling.control_pass import Control
from ..modeling.controlnet import UnifiedControlNetModel
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel


class ControllableDenoiser(Protocol):
    """A denoiser that asks a `UnifiedDiffusionModel`, and can ask it under ControlNets."""

    model: UnifiedDiffusionModel

    def under(self, control: Control) -> Self:
        """A denoiser of the same kind under one more ControlNet."""
        ...

    def __call__(
        self, x_t: Shaped[Tensor, "batch *shape"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch *out"]:
        """The estimate of the clean sample."""
        ...


Controllable = TypeVar("Controllable", bound=ControllableDenoiser)


def check_control(scale: float, start: float, end: float) -> None:
    """Raise ValueError unless the scale is finite and the range lies in [0, 1], start before end."""
    named = {"controlnet_conditioning_scale": scale, "control_guidance_start": start, "control_guidance_end": end}
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
    if not 0 <= start < end <= 1:
        raise ValueError(f"0 <= control_guidance_start < control_guidance_end <= 1 must hold, got {start} and {end}")


def controlled(
    denoiser: Controllable,
    controlnet: UnifiedControlNetModel,
    hint: Segment,
    conditioning_scale: float = 1.0,
    guidance_start: float = 0.0,
    guidance_end: float = 1.0,
) -> Controllable:
    """Let a ControlNet that has read a hint add to the network's hidden states (arXiv:2302.05543).

    Applied again it adds a further one: what the network gets is the sum, weighted by the scales.

    Args:
        denoiser: without context so far.
        controlnet: made for the denoiser's network.
        hint: clean, one row for each of the batch; see `UnifiedControlNetModel.read`.
        conditioning_scale: the weight of what it adds; 0 is nothing.
        guidance_start, guidance_end: when it acts, in shares of the noise removed, 0 <= start < end <= 1.

    Raises:
        ValueError: a ControlNet of another base, a hint that it cannot read, numbers out of range.

    Usage: `denoiser = guided(controlled(denoiser, controlnet, hint), null_denoiser, scale=4.0)`
    """
    check_control(conditioning_scale, guidance_start, guidance_end)
    cache = controlnet.read(denoiser.model, hint)
    return denoiser.under(Control(controlnet, cache, conditioning_scale, guidance_start, guidance_end))
