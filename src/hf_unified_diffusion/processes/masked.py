"""Masked diffusion: each token is hidden with a probability that grows with time."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .categorical import gumbel_argmax
from .checks import check_interval, check_logits, check_time, check_tokens, over
from .randomness import Generators, first_of, uniform
from .schedules import LINEAR, Schedule


@dataclass(frozen=True)
class Masked:
    """Each token survives to time t with probability 1 - noise(t), else becomes the mask (arXiv:2406.07524).

    Times are float tensors, (batch,) or (batch, length) when tokens have their own: a token at time 0 is never hidden.

    Attributes:
        mask_token_id: id of the mask token, at least 0.
        schedule: probability of the mask as a function of time.

    Raises:
        ValueError: for a negative mask_token_id; methods raise it for wrong shapes, dtypes and times.

    Usage: `x_t = Masked(mask_token_id=49152).corrupt(x_0, t, generator)`
    """

    mask_token_id: int
    schedule: Schedule = LINEAR

    def __post_init__(self):
        if self.mask_token_id < 0:
            raise ValueError(f"mask_token_id must be at least 0, got {self.mask_token_id}")

    def mask_probability(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The probability that a token is hidden at time t; what the network is told as its time."""
        return self.schedule.noise(t)

    def loss_weight(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What a hidden token's nats at time t count in the NELBO, per token of the sequence."""
        return self.schedule.weight(t)

    def prior(self, shape: tuple[int, ...], generator: Generators) -> Int[Tensor, "batch length"]:
        """x_1, all masks, int64, on the generator's device. It draws nothing."""
        return torch.full(shape, self.mask_token_id, device=first_of(generator).device)

    def corrupt(
        self, x_0: Int[Tensor, "batch length"], t: Float[Tensor, "batch ..."], generator: Generators
    ) -> Int[Tensor, "batch length"]:
        """Hide each token with probability noise(t) (arXiv:2406.07524, eq. 1)."""
        check_tokens(x_0, "x_0")
        check_time(t, x_0)
        hidden = uniform(tuple(x_0.shape), generator, x_0.device) < over(self.mask_probability(t), x_0)
        return torch.where(hidden, self.mask_token_id, x_0)

    def reverse(
        self,
        clean: Float[Tensor, "batch length vocab"],
        x_t: Int[Tensor, "batch length"],
        t: Float[Tensor, "batch ..."],
        s: Float[Tensor, "batch ..."],
        generator: Generators,
    ) -> Int[Tensor, "batch length"]:
        """Uncover each mask with probability 1 - noise(s)/noise(t), drawing from the logits `clean` in float64.

        Visible tokens are carried over and the mask itself is never drawn (arXiv:2406.07524, eqs. 5 and 7).
        """
        check_tokens(x_t, "x_t")
        check_logits(clean, x_t)
        check_interval(t, s, x_t)
        revealed_share = 1 - self.mask_probability(s) / self.mask_probability(t)
        revealed = uniform(tuple(x_t.shape), generator, x_t.device) < over(revealed_share, x_t)
        revealed &= x_t == self.mask_token_id
        logits = clean[revealed]
        logits[:, self.mask_token_id] = -torch.inf
        x_s = x_t.clone()
        x_s[revealed] = gumbel_argmax(logits.float(), revealed.nonzero()[:, 0], len(x_t), generator).to(x_t.dtype)
        return x_s

    def loss(
        self,
        clean: Float[Tensor, "batch length vocab"],
        x_0: Int[Tensor, "batch length"],
        x_t: Int[Tensor, "batch length"],
        t: Float[Tensor, "batch ..."],
    ) -> Float[Tensor, "batch"]:
        """One-sample estimate of the NELBO in nats per token (arXiv:2406.07524, eq. 10), from logits `clean`.

        Its mean over t uniform in (0, 1] bounds the negative log-likelihood per token.
        """
        check_tokens(x_t, "x_t")
        check_logits(clean, x_t)
        check_time(t, x_t)
        nats = F.cross_entropy(clean.transpose(1, 2).float(), x_0.long(), reduction="none")
        weighted = nats * over(self.loss_weight(t), x_t)
        return torch.where(x_t == self.mask_token_id, weighted, 0.0).mean(1)
