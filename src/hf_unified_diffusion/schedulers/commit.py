"""Which masks of a canvas are committed in a step, and which committed tokens are hidden again. Rows never mix."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..processes.randomness import Generators, ragged_uniform

ORDERINGS = ("confidence", "margin", "entropy", "random")


def position_scores(
    ordering: str,
    confidence: Float[Tensor, "count"],
    entropy: Float[Tensor, "count"],
    probs: Float[Tensor, "count vocab"],
    masks_per_row: list[int],
    generator: Generators | None,
) -> Float[Tensor, "count"]:
    """A score per masked position; higher is committed earlier.

    confidence: probability of the drawn token (arXiv:2202.04200). margin: lead of the best token over the second
    (arXiv:2502.06768). entropy: least first. random: the order of ancestral sampling.
    """
    if ordering == "confidence":
        return confidence
    if ordering == "margin":
        best = probs.topk(2, dim=-1).values
        return best[:, 0] - best[:, 1]
    if ordering == "entropy":
        return -entropy
    return ragged_uniform(masks_per_row, generator, probs.device)


def ranks(scores: Float[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """The place of each position in its row's falling order of scores; earlier positions win ties."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def planned_masks(masks: Int[Tensor, "batch"], level: float, next_level: float) -> Int[Tensor, "batch"]:
    """How many masks a row keeps when the mask probability falls from `level` to `next_level`; 0 for 0."""
    return (masks.double() * (next_level / level) + 0.5).floor().long()


def entropy_bounded_count(
    entropy: Float[Tensor, "batch length"],
    rank: Int[Tensor, "batch length"],
    masked: Bool[Tensor, "batch length"],
    bound: float,
) -> Int[Tensor, "batch"]:
    """The largest number k of first-ranked masks with sum(H_1..H_k) - max(H_1..H_k) <= bound (arXiv:2505.24857).

    The left side bounds the information that the k tokens have about each other, in nats: what drawing them
    independently ignores. One token always qualifies.
    """
    in_order = torch.zeros_like(entropy, dtype=torch.float64)
    in_order.scatter_(1, rank, torch.where(masked, entropy, torch.inf).double())
    shared = in_order.cumsum(1) - in_order.cummax(1).values  # past the masks inf - inf is NaN: not within the bound
    return (shared <= bound).sum(1)


def draw_remasked(
    visible: Bool[Tensor, "batch length"],
    confidence: Float[Tensor, "batch length"],
    rate: float,
    most: Int[Tensor, "batch"],
    generator: Generators | None,
) -> Bool[Tensor, "batch length"]:
    """Choose visible tokens to hide again (ReMDM, arXiv:2503.00307, capped and confidence schedules).

    Each visible token counts with probability `rate`, up to `most` in its row, so that the plan for the masks still
    holds; that many are then drawn without replacement with weights exp(-confidence).
    """
    per_row = visible.sum(1).tolist()
    coins = torch.ones(visible.shape, dtype=torch.float64, device=visible.device)
    coins[visible] = ragged_uniform(per_row, generator, visible.device)
    keys = torch.full_like(coins, -torch.inf)
    gumbel = ragged_uniform(per_row, generator, visible.device).log_().neg_().log_().neg_()
    keys[visible] = gumbel - confidence[visible].double()
    count = torch.minimum((coins < rate).sum(1), most)
    return visible & (ranks(keys) < count[:, None])
