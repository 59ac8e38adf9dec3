"""A postfilter of log-mels: gives those that a network made the modulations that those of speech have.

The modulations of a stretch of log-mels are its cosine transform over bands and frames: how strongly it changes, how
finely along frequency (bends of the spectrum, harmonics of the voice) and how fast along time. A network that is guided
overdoes the broad and slow ones, and one that is unsure has too little of the fine and fast ones. Each gets a gain of
its own, as in Takamichi et al., "Postfilters to modify the modulation spectrum for statistical parametric speech
synthesis" (IEEE/ACM TASLP 2016).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def cosine_transform(size: int) -> Float[Tensor, "size size"]:
    """The orthonormal DCT-II: row k is k half waves over `size` places, float32; its transpose is its inverse.

    Usage: `cosine_transform(100) @ mels  # (batch, 100, frames) along bands`
    """
    places = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * places[:, None] * (places + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def modulations(mels: Float[Tensor, "batch bands frames"], size: int) -> Float[Tensor, "batch pieces bands size"]:
    """The modulations of pieces of `size` frames that begin every half of it, the first half a piece before the sound.

    Pieces fade in and out by a sine, so that `from_modulations` has nothing to divide by. Beyond its ends the sound
    stays as it is there.

    Usage: `modulations(mels, 32).square().mean(dim=(0, 1))  # how much of each there is`
    """
    hop = size // 2
    padded = F.pad(mels, (hop, hop + -mels.shape[2] % hop), mode="replicate")
    pieces = padded.unfold(2, size, hop).transpose(1, 2) * fade(size).to(mels)
    bands, frames = (cosine_transform(length).to(mels) for length in (mels.shape[1], size))
    return bands @ pieces @ frames.T


def from_modulations(
    found: Float[Tensor, "batch pieces bands size"], num_frames: int
) -> Float[Tensor, "batch bands frames"]:
    """The inverse of `modulations`."""
    size = found.shape[3]
    bands, frames = (cosine_transform(length).to(found) for length in (found.shape[2], size))
    pieces = (bands.T @ found @ frames) * fade(size).to(found)
    first, second = pieces.split(size // 2, dim=3)
    joined = first[:, 1:] + second[:, :-1]
    return joined.transpose(1, 2).flatten(2)[..., :num_frames]


def fade(size: int) -> Float[Tensor, "size"]:
    """A sine over a piece: the squares of pieces half a piece apart add up to 1."""
    return torch.sin(math.pi * (torch.arange(size) + 0.5) / size)


class ModulationFilter(nn.Module):
    """Gains of the modulations of log-mels; a fresh one, with gains of 1, changes nothing.

    Args:
        bands: of the log-mels.
        frames: of a piece, even.

    Attributes:
        gains: of (bands, frames) modulations, the broadest and slowest first.

    Usage: `ModulationFilter(100, 32)(mels)`
    """

    gains: Tensor

    def __init__(self, bands: int, frames: int):
        super().__init__()
        self.register_buffer("gains", torch.ones(bands, frames))

    def forward(self, mels: Float[Tensor, "batch bands frames"]) -> Float[Tensor, "batch bands frames"]:
        """The log-mels with each modulation times its gain, float32."""
        found = modulations(mels.float(), self.gains.shape[1])
        return from_modulations(found * self.gains.float(), mels.shape[2])
