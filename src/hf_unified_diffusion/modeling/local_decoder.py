"""What neighbours in time tell of a sound: a small convolutional decoder after the trunk."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .embeddings import TIME_SCALE, PreciseLinear, ZeroLinear, sinusoids

TIME_SIZE = 64
KERNEL = 7  # frames that a block sees


class DecoderBlock(nn.Module):
    """One block of a ConvNeXt along time (arXiv:2201.03545), its normalized features scaled and shifted by the noise."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Conv1d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.time = ZeroLinear(TIME_SIZE, 2 * channels)
        self.up = nn.Linear(channels, 3 * channels)
        self.down = nn.Linear(3 * channels, channels)

    def forward(self, x: Tensor, noise: Tensor, real: Tensor | None) -> Tensor:
        """Features of the next block; padding is read as zeros, so that no row depends on its batch."""
        seen = x if real is None else x * real
        mixed = self.norm(self.mix(seen.transpose(1, 2)).transpose(1, 2))
        scale, shift = self.time(noise).chunk(2, dim=-1)
        return x + self.down(nn.functional.gelu(self.up(mixed * (1 + scale) + shift)))


class LocalDecoder(nn.Module):
    def __init__(self, hidden_size: int, width: int, frames: int, channels: int, num_blocks: int):
        super().__init__()
        self.frames = frames
        self.read = PreciseLinear(2 * width // frames, channels)
        self.context = PreciseLinear(hidden_size, channels)
        self.blocks = nn.ModuleList(DecoderBlock(channels) for _ in range(num_blocks))
        self.write = ZeroLinear(channels, width // frames)

    def forward(
        self,
        hidden: Float[Tensor, "batch length hidden"],
        estimate: Float[Tensor, "batch length width"],
        x_t: Float[Tensor, "batch length width"],
        time: Float[Tensor, "batch *length"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        dtype, shape = self.read.bias.dtype, estimate.shape
        t = (time if time.ndim == 2 else time[:, None]).float()
        noise = sinusoids(t * TIME_SCALE, TIME_SIZE).to(dtype).repeat_interleave(self.frames, dim=1)
        if noise.shape[1] == self.frames:
            noise = noise[:, :1]
        real = None if mask is None else mask.repeat_interleave(self.frames, dim=1)[..., None].to(dtype)
        pair = torch.cat([part.to(dtype).unflatten(1, (-1, 1)).reshape(shape[0], shape[1] * self.frames, -1) for part in (x_t, estimate)], dim=-1)
        x = self.read(pair) + self.context(hidden.to(dtype)).repeat_interleave(self.frames, dim=1)
        for block in self.blocks:
            x = block(x, noise, real)
        told = self.write(x).reshape(shape)
        return (estimate.float() + t[..., None] * told.float()).to(estimate.dtype)
