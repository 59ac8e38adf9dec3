"""Where and when a token is: sectioned rotary positions and sinusoidal times."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .configuration_unified_diffusion import UnifiedDiffusionConfig

TIME_SCALE = 1000.0  # times in [0, 1] meet the sinusoids as the usual 0..1000 steps
SHORTEST_PERIOD, LONGEST_PERIOD = 1.0, 10000.0


class SectionedRotary(nn.Module):
    """Rotary positions on (seconds, y, x), each frequency reading one axis (arXiv:2104.09864; sections as in Qwen2-VL).

    Where the three coordinates are equal, as in text, this is exactly 1-D RoPE.
    """

    def __init__(self, config: UnifiedDiffusionConfig):
        super().__init__()
        half = config.head_size // 2
        axes = config.rope_axes
        self.axis_of_frequency = [axes[i % len(axes)] for i in range(half)]
        self.theta, self.num_frequencies = config.rope_theta, half

    def forward(
        self, positions: Float[Tensor, "batch length 3"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "batch 1 length head_dim"], Float[Tensor, "batch 1 length head_dim"]]:
        """What `rotate` multiplies with; computed in float32 because bf16 cannot hold large angles."""
        exponents = torch.arange(self.num_frequencies, device=positions.device, dtype=torch.float32)
        angles = positions.float()[..., self.axis_of_frequency] * self.theta ** (-exponents / self.num_frequencies)
        cos, sin = angles[:, None].cos().to(dtype), angles[:, None].sin().to(dtype)
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Float[Tensor, "batch heads length head_dim"], cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + head_dim/2}) by its angle; the sines of the first half are negative."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([second, first], dim=-1) * signed_sin


def sinusoids(x: Float[Tensor, "*shape"], size: int) -> Float[Tensor, "*shape size"]:
    """cos and sin of x at `size / 2` geometric frequencies (arXiv:1706.03762, section 3.5)."""
    half = size // 2
    exponents = torch.arange(half, device=x.device, dtype=torch.float32) / half
    angles = x.float()[..., None] * torch.exp(-math.log(LONGEST_PERIOD / SHORTEST_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, so that what it adds is learned from nothing."""


class PreciseLinear(nn.Linear):
    """Stays dense where the quantizers of transformers replace layers of the very class nn.Linear (bitsandbytes).

    For what raw numbers enter by, latents and sinusoids, and for heads: few weights, and much depends on them.
    ArrowQuant goes by its own policy.
    """


class TimeEmbedding(nn.Module):
    """Embeds time t, target time r and guidance w of a canvas; all outputs start at zero.

    Clean context gets none of it, so a causal checkpoint keeps its features exactly.
    """

    def __init__(self, config: UnifiedDiffusionConfig):
        super().__init__()
        self.size = config.time_embedding_size
        self.hidden = PreciseLinear(self.size, config.hidden_size)
        self.time = ZeroLinear(config.hidden_size, config.hidden_size)
        self.target_time = ZeroLinear(self.size, config.hidden_size, bias=False)
        self.guidance = ZeroLinear(self.size, config.hidden_size, bias=False)

    def forward(
        self, time: Float[Tensor, "*shape"], target_time: Tensor | None, guidance: Tensor | None
    ) -> Float[Tensor, "*shape width"]:
        """The sum of the embeddings of what is given."""
        dtype = self.hidden.bias.dtype  # not the weight's, which may be quantized
        embedded = self.time(nn.functional.silu(self.hidden(sinusoids(time * TIME_SCALE, self.size).to(dtype))))
        if target_time is not None:
            embedded = embedded + self.target_time(sinusoids(target_time * TIME_SCALE, self.size).to(dtype))
        if guidance is not None:
            embedded = embedded + self.guidance(sinusoids(guidance, self.size).to(dtype))
        return embedded
