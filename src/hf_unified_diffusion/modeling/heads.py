"""What is particular to a modality: how its tokens come in and how the clean sample is read off."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .configuration_unified_diffusion import UnifiedDiffusionConfig
from .embeddings import PreciseLinear, ZeroLinear


class TokenEmbedding(nn.Embedding):
    """The vocabulary of text and code, read in both directions."""

    def unembed(self, hidden: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape vocab"]:
        """Inner products with every token's embedding."""
        return nn.functional.linear(hidden, self.weight)


class TokenHead(nn.Module):
    """A low-rank residual of its own before the shared unembedding; it starts as the identity."""

    def __init__(self, config: UnifiedDiffusionConfig):
        super().__init__()
        self.down = PreciseLinear(config.hidden_size, config.head_rank, bias=False)
        self.up = ZeroLinear(config.head_rank, config.hidden_size, bias=False)

    def forward(self, hidden: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        """Hidden states ready for the unembedding."""
        return hidden + self.up(nn.functional.silu(self.down(hidden)))


class ContinuousHead(ZeroLinear):
    """Reads E[x_0] of a continuous token; starts at zero, the mean of normalized data."""

    def __init__(self, config: UnifiedDiffusionConfig, width: int):
        super().__init__(config.hidden_size, width)


class WienerSkip(nn.Module):
    """Corrects E[x_0] by what the noisy token itself says: a skip connection past the trunk (arXiv:2206.00364).

    A trunk that is narrow and rounded forgets what a token of many numbers says in detail (decision 30). Where what it
    leaves over has variance r along an axis, x_t - (1 - t) estimate tells of it by the Wiener filter: the factor is
    (1 - t) r / ((1 - t)^2 r + t^2). Nothing is added at t = 1; at t = 0 the token comes out as it is along the axes.

    Attributes:
        axes: float (width, axes), orthonormal columns; zero until they are fitted, and then nothing is added.
        variances: float (axes,), r of each.

    Usage: `skip(estimate, segment.values, segment.time)`
    """

    axes: Tensor
    variances: Tensor

    def __init__(self, width: int, num_axes: int):
        super().__init__()
        self.register_buffer("axes", torch.zeros(width, num_axes))
        self.register_buffer("variances", torch.zeros(num_axes))

    def forward(
        self,
        estimate: Float[Tensor, "batch length width"],
        x_t: Float[Tensor, "batch length width"],
        time: Float[Tensor, "batch *length"],
    ) -> Float[Tensor, "batch length width"]:
        """The corrected estimate, computed in float32, in the dtype it came in."""
        with torch.autocast(estimate.device.type, enabled=False):
            axes, variances = self.axes.float(), self.variances.float().clamp_min(1e-8)
            t = time.float()[..., None] if time.ndim == 2 else time.float()[:, None, None]
            unsaid = x_t.float() - (1 - t) * estimate.float()
            gain = (1 - t) * variances / ((1 - t).square() * variances + t.square())
            return (estimate.float() + (unsaid @ axes * gain) @ axes.T).to(estimate.dtype)
