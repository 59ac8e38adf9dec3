"""What neighbours in time tell of a sound: a small convolutional decoder behind the trunk."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .embeddings import TIME_SCALE, PreciseLinear, ZeroLinear, sinusoids

TIME_SIZE = 32  # sinusoids of the time
KERNEL = 7  # frames that a block sees


class DecoderBlock(nn.Module):
    """A block of a ConvNeXt along time (arXiv:2201.03545), its normalized features scaled and shifted by the noise."""

    def __init__(self, channels: int, intermediate_size: int):
        super().__init__()
        self.mix = nn.Conv1d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels, bias=False)
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.up = nn.Linear(channels, intermediate_size)
        self.down = nn.Linear(intermediate_size, channels, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch frames channels"],
        scale: Float[Tensor, "batch frames_or_one channels"],
        shift: Float[Tensor, "batch frames_or_one channels"],
        real: Float[Tensor, "batch frames 1"] | None,
    ) -> Float[Tensor, "batch frames channels"]:
        """Features for the next block; padding is read as the zeros beyond an end, so that no row depends on others."""
        seen = x if real is None else x * real
        mixed = self.norm(self.mix(seen.transpose(1, 2)).transpose(1, 2))
        return x + self.down(nn.functional.gelu(self.up(mixed * (1 + scale) + shift)))


class LocalDecoder(nn.Module):
    """Corrects E[x_0] by the noisy tokens, the estimate itself and what the trunk knows, frame by frame (decision 31).

    The trunk decides what is said, where and by whom; it reads a token of many numbers through one narrow projection,
    and what lies between neighbours in detail is lost there. A convolution is what sees that: the "velocity decoder" of
    arXiv:2504.05741, here as a residual of the estimate. It starts at zero, is nothing at t = 0, and trains behind a
    frozen trunk: no other modality changes.

    Args:
        hidden_size: width of the trunk.
        width: numbers in a token: `frames` frames, one after another.
        frames: of a token.
        channels, intermediate_size, num_blocks: of the decoder.

    Usage: `decoder(hidden, estimate, segment.values, segment.time, segment.mask)`
    """

    def __init__(
        self, hidden_size: int, width: int, frames: int, channels: int, intermediate_size: int, num_blocks: int
    ):
        super().__init__()
        self.frames = frames
        self.read = PreciseLinear(2 * width // frames, channels)
        self.context = nn.Linear(hidden_size, channels)
        self.time = ZeroLinear(TIME_SIZE, 2 * channels)  # for all blocks
        self.blocks = nn.ModuleList(DecoderBlock(channels, intermediate_size) for _ in range(num_blocks))
        self.write = ZeroLinear(channels, width // frames)

    def forward(
        self,
        hidden: Float[Tensor, "batch length hidden"],
        estimate: Float[Tensor, "batch length width"],
        x_t: Float[Tensor, "batch length width"],
        time: Float[Tensor, "batch *length"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """The corrected estimate, in the dtype it came in; the tokens are one run in time, whatever their positions."""
        dtype, frames = self.read.bias.dtype, self.frames
        t = (time if time.ndim == 2 else time[:, None]).float()
        noise = self.time(sinusoids(t * TIME_SCALE, TIME_SIZE).to(dtype))
        if time.ndim == 2:
            noise = noise.repeat_interleave(frames, dim=1)
        scale, shift = noise.chunk(2, dim=-1)
        real = None if mask is None else mask.repeat_interleave(frames, dim=1)[..., None].to(dtype)
        heard = [part.to(dtype).unflatten(2, (frames, -1)).flatten(1, 2) for part in (x_t, estimate)]
        x = self.read(torch.cat(heard, dim=-1)) + self.context(hidden.to(dtype)).repeat_interleave(frames, dim=1)
        for block in self.blocks:
            x = block(x, scale, shift, real)
        told = self.write(x).unflatten(1, (-1, frames)).flatten(2)
        return (estimate.float() + t[..., None] * told.float()).to(estimate.dtype)
