"""Energies: from a denoiser and a wish to a denoiser whose clean estimate goes downhill."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..contracts import Condition, Denoiser

# a clean sample, or the probabilities of clean tokens -> its energy; lower is better
EnergyOf = Callable[[Float[Tensor, "batch *shape"]], Float[Tensor, "batch"]]


@runtime_checkable
class EnergyModel(Protocol):
    """A wish about continuous data: differentiable, and checked at the end.

    Attributes:
        name: what histories call it.
        weight: how much it counts beside others, at least 0.
    """

    name: str
    weight: float

    def __call__(self, clean: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
        """The energy of clean samples; autograd gives its gradient."""
        ...

    def accepts(self, clean: Float[Tensor, "batch *shape"]) -> Bool[Tensor, "batch"]:
        """Whether finished samples are as wished."""
        ...


def check_scale(name: str, value: object) -> None:
    """Raise ValueError unless the value is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_energies(energies: Any, kind: Any, kind_name: str) -> None:
    """Raise ValueError unless this is a sequence of one kind of energies with weights of at least 0."""
    if not isinstance(energies, Sequence) or isinstance(energies, str):
        raise ValueError(f"energies must be a list of energies, got {type(energies).__name__}")
    for energy in energies:
        if not isinstance(energy, kind):
            raise ValueError(f"energies must each be {kind_name}, got {type(energy).__name__}")
        check_scale(f"the weight of {energy.name}", energy.weight)


def weighted_sum(energies: Sequence[EnergyModel]) -> EnergyOf:
    """The sum of energies, each times its weight.

    Usage: `energy = weighted_sum([KeepPixels(picture, mask, weight=2.0), Palette(colors)])`
    """
    return lambda clean: torch.stack([energy.weight * energy(clean) for energy in energies]).sum(dim=0)


def gradient(energy: EnergyOf, clean: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
    """Of the energy with respect to the sample, by autograd; float32 or finer.

    Raises:
        ValueError: for energies that are no (batch,), do not depend on the sample, or whose gradient is NaN or inf.
    """
    with torch.enable_grad():
        sample = clean.detach().to(torch.promote_types(clean.dtype, torch.float32)).requires_grad_()
        value = energy(sample)
        if value.shape != sample.shape[:1] or not value.requires_grad:
            raise ValueError(
                f"an energy must be one differentiable number a sample, shape {tuple(sample.shape[:1])}, "
                f"got {tuple(value.shape)}{'' if value.requires_grad else ' that does not depend on the sample'}"
            )
        (found,) = torch.autograd.grad(value.sum(), sample)
    if not bool(found.isfinite().all()):
        raise ValueError("an energy must have a finite gradient at the clean estimate, got NaN or inf")
    return found


def with_energies(denoiser: Denoiser, energies: Sequence[EnergyModel], scale: float) -> Denoiser:
    """Move the clean estimate of continuous data downhill: clean - scale * sum of weight * grad E(clean).

    The score of a Gaussian flow is linear in its clean estimate, so this is score - eta * grad E with
    eta = scale * (1 - sigma) / sigma^2 (compare arXiv:2105.05233; the gradient is taken at the estimate, the network
    is not differentiated).

    Args:
        denoiser: whose estimate is E[x_0].
        energies: each with its own weight.
        scale: eta in units of the clean sample; 0 is the denoiser itself.

    Raises:
        ValueError: for a scale or weight below 0, or energies that are none; when called, as `gradient`.

    Usage: `denoiser = with_energies(model, [Palette(colors)], scale=0.5)`
    """
    check_scale("scale", scale)
    check_energies(energies, EnergyModel, "an EnergyModel")
    if scale == 0 or all(energy.weight == 0 for energy in energies):
        return denoiser
    energy = weighted_sum(energies)

    def denoise(
        x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch *shape"]:
        clean = denoiser(x_t, t, condition)
        return (clean - scale * gradient(energy, clean)).to(clean.dtype)

    return denoise


def with_token_energy(denoiser: Denoiser, energy: EnergyOf, scale: float, mask_token_id: int) -> Denoiser:
    """The same for tokens: logits - scale * dE/dp, p being the probabilities of the clean tokens.

    A first-order expansion: the energy that each token would add (compare arXiv:2406.01572). Tokens that are there
    already have the probability 1; a token that the denoiser rules out stays ruled out.

    Args:
        energy: of float (B, n, vocab) probabilities.

    Usage: `denoiser = with_token_energy(model, lambda p: p[..., comma_id].sum(-1), 4.0, mask_token_id)`
    """
    check_scale("scale", scale)
    if scale == 0:
        return denoiser

    def denoise(
        x_t: Int[Tensor, "batch length"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch length vocab"]:
        logits = denoiser(x_t, t, condition)
        hidden = logits.clone()
        hidden[..., mask_token_id] = -torch.inf
        probs = hidden.float().softmax(dim=-1)
        known = x_t != mask_token_id
        probs[known] = torch.nn.functional.one_hot(x_t[known].long(), logits.shape[-1]).to(probs)
        return logits - (scale * gradient(energy, probs)).to(logits.dtype)

    return denoise


def through(energy: EnergyModel, decode: Callable[[Tensor], Tensor]) -> EnergyModel:
    """An energy of what a differentiable decoder makes of a sample: pixels of latents.

    Usage: `with_energies(denoiser, [through(Palette(colors), lambda latents: codec.decode(latents, 8, 8))], 0.5)`
    """
    return _Through(energy, decode)


class _Through:
    def __init__(self, energy: EnergyModel, decode: Callable[[Tensor], Tensor]):
        self.name, self.weight, self.energy, self.decode = energy.name, energy.weight, energy, decode

    def __call__(self, clean: Shaped[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
        return self.energy(self.decode(clean))

    def accepts(self, clean: Shaped[Tensor, "batch *shape"]) -> Any:
        return self.energy.accepts(self.decode(clean))
