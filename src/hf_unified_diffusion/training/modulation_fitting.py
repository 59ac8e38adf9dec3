"""The gains of a postfilter: how much of each modulation speech has, and how much what a network made."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..modeling.modulation_filter import modulations


def mean_power(sounds: Sequence[Float[Tensor, "bands frames"]], size: int) -> Float[Tensor, "bands size"]:
    """The mean square of each modulation over the pieces of log-mels, see `modulation_filter.modulations`.

    Raises ValueError for no sounds.
    """
    if not sounds:
        raise ValueError("modulations need at least one sound, got none")
    found = [modulations(sound[None], size)[0] for sound in sounds]
    return sum(each.square().sum(dim=0) for each in found) / sum(map(len, found))


def fitted_gains(
    made: Sequence[Float[Tensor, "bands frames"]],
    speech: Sequence[Float[Tensor, "bands frames"]],
    size: int = 32,
    exponent: float = 0.6,
    deviation: float = 1.0,
) -> Float[Tensor, "bands size"]:
    """Gains that bring the power of each modulation of `made` nearer to that of `speech`.

    Args:
        made: normalized log-mels that a network made.
        speech: those of recordings, of as many bands; not necessarily of the same sentences.
        size: frames of a piece, even.
        exponent: how near, in [0, 1]: 1 is to the same power, 0 changes nothing.
        deviation: of the Gaussian over neighbouring modulations that powers are averaged with, in modulations.

    Raises ValueError for no sounds or an exponent out of range.

    Usage: `vocoder.set_postfilter(fitted_gains(made, speech))`
    """
    if not 0 <= exponent <= 1:
        raise ValueError(f"exponent must be in [0, 1], got {exponent}")
    wanted, got = (smoothed(mean_power(sounds, size), deviation) for sounds in (speech, made))
    tiny = torch.finfo(got.dtype).tiny
    return (wanted.clamp(min=tiny) / got.clamp(min=tiny)) ** (exponent / 2)


def smoothed(power: Float[Tensor, "bands size"], deviation: float) -> Float[Tensor, "bands size"]:
    """A Gaussian's mean around each place, reflected at the edges; as it is with a deviation of 0."""
    if deviation == 0:
        return power
    reach = min(math.ceil(4 * deviation), min(power.shape) - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    weights = (weights / weights.sum()).to(power)
    padded = F.pad(power[None, None], (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, weights[None, None, :, None]), weights[None, None, None])[0, 0]
