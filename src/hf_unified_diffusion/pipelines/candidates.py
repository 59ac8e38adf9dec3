"""Choosing among candidates: the one that the network knows better with its text than without."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..codecs.speech_layout import real_tokens, stacked_rows
from ..contracts import Denoiser
from ..processes.randomness import spawn_generators
from ..schedulers.flow_matching import FLOW
from .text_inputs import LARGEST_SEED

SCORING_SEED = 0


def candidate_generators(generator: Generator, count: int) -> list[Generator]:
    """A row's own generator, which the first candidate has whatever the count, and others that follow from it."""
    copied = Generator(generator.device)
    copied.set_state(generator.get_state())
    seed = int(torch.randint(LARGEST_SEED, (), generator=copied, device=copied.device))
    return [generator, *spawn_generators(seed, count - 1, generator.device)] if count > 1 else [generator]


def excess_losses(
    with_text: Denoiser, without: Denoiser, rows: Sequence[Float[Tensor, "tokens width"]], times: Sequence[float]
) -> list[float]:
    """How much worse the network denoises each row with its text than without; lower is better.

    The difference of two bounds on log-likelihoods, as in the diffusion classifier (arXiv:2303.16203), at a few noise
    levels, with the same noise for every row of a length.
    """
    device = rows[0].device
    x_0, real = stacked_rows(rows, device), real_tokens(rows, device)
    weight = torch.ones_like(x_0[..., 0]) if real is None else real.to(x_0)
    generators = [Generator().manual_seed(SCORING_SEED) for _ in rows]
    total = torch.zeros(len(rows), device=device)
    for t in times:
        noise = [FLOW.prior((1, *row.shape), one)[0] for row, one in zip(rows, generators, strict=True)]
        x_t = (1 - t) * x_0 + t * stacked_rows(noise, device)
        level = torch.full((len(rows),), t, device=device)
        for denoiser, sign in ((with_text, 1.0), (without, -1.0)):
            errors = (denoiser(x_t, level, None).float() - x_0).square().mean(dim=2)
            total += sign * (errors * weight).sum(dim=1) / weight.sum(dim=1)
    return (total / len(times)).tolist()


def best_of_each(losses: Sequence[float], num_candidates: int) -> list[int]:
    """The place of the lowest loss in each group of candidates, the first of equal ones."""
    starts = range(0, len(losses), num_candidates)
    return [min(range(start, start + num_candidates), key=losses.__getitem__) for start in starts]
