"""What is particular to a modality: how its tokens come in and how the clean sample is read off."""

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
