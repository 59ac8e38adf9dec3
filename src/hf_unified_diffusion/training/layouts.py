"""From clean token sequences to what one training pass sees: clean context and noisy canvases beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from ..contracts import Segment

IGNORED_LABEL = -100


@dataclass(frozen=True)
class TokenBatch:
    """Clean sequences of one modality.

    Attributes:
        tokens: int64 (B, T).
        documents: int64 (B, T), which document of its row a token belongs to; documents never see each other.
        modality: "text" or "code".
    """

    tokens: Int[Tensor, "batch length"]
    documents: Int[Tensor, "batch length"]
    modality: str

    @property
    def num_tokens(self) -> int:
        """Tokens in it."""
        return self.tokens.numel()


@dataclass(frozen=True)
class Target:
    """What a segment is trained to predict.

    Attributes:
        labels: int64 (B, n), -100 where nothing is asked.
        weight: float (B, n), of each label's cross-entropy.
    """

    labels: Int[Tensor, "batch length"]
    weight: Float[Tensor, "batch length"]

    def to(self, device: torch.device) -> "Target":
        """The same target on another device."""
        return Target(self.labels.to(device), self.weight.to(device))


def hide_exactly(
    batch: int, length: int, block_length: int, generator: Generator
) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch length"]]:
    """Hide exactly k of the n tokens of each block, k uniform in 1..n and stratified over all blocks.

    Weighted by n / k this is the NELBO of masked diffusion in its any-order form (arXiv:2406.03736, section 3), and
    k / n is the time the network is given, in training as in sampling. The last block may be shorter.

    Returns:
        which tokens are hidden, and the time k / n of each token's block.
    """
    num_blocks = -(-length // block_length)
    sizes = torch.full((num_blocks,), block_length)
    sizes[-1] = length - block_length * (num_blocks - 1)
    strata = (torch.randperm(batch * num_blocks, generator=generator) + torch.rand((), generator=generator)) % (
        batch * num_blocks
    )
    count = 1 + (strata.view(batch, num_blocks) / (batch * num_blocks) * sizes).floor().clamp(max=sizes - 1)
    noise = torch.rand(batch, num_blocks, block_length, generator=generator)
    noise[:, -1, sizes[-1] :] = 2.0  # places past the end come last in the order
    order = noise.argsort(dim=-1).argsort(dim=-1)
    hidden = (order < count[..., None]).flatten(1)[:, :length]
    time = (count / sizes)[..., None].expand(-1, -1, block_length).flatten(1)[:, :length]
    return hidden, time


def canvas_of(
    batch: TokenBatch,
    places: Int[Tensor, "length"],
    block_length: int,
    hidden: Bool[Tensor, "batch length"],
    time: Float[Tensor, "batch length"],
    mask_token_id: int,
    canvas_offset: int,
    reach: Int[Tensor, "length"],
) -> tuple[Segment, Target]:
    """The tokens at `places` as canvases of `block_length`, `hidden` ones masked, and what they should become."""
    tokens = batch.tokens[:, places]
    rows, length = tokens.shape
    index = torch.arange(length)
    segment = Segment(
        batch.modality,
        tokens.masked_fill(hidden, mask_token_id),
        time=time,
        positions=places.float().expand(rows, length),
        document=batch.documents[:, places],
        canvas=(canvas_offset + 1 + index // block_length).expand(rows, length),
        reach=reach.expand(rows, length),
    )
    weight = torch.where(hidden, 1 / time.clamp_min(1e-6), 0.0)
    return segment, Target(tokens.masked_fill(~hidden, IGNORED_LABEL), weight)


def clean_copy(batch: TokenBatch) -> tuple[Segment, Target]:
    """The sequences as causal context, each token asked for the next one."""
    rows, length = batch.tokens.shape
    positions = torch.arange(length).float().expand(rows, length)
    context = Segment(batch.modality, batch.tokens, positions=positions, document=batch.documents)
    return context, next_token_target(batch)


def block_reach(length: int, block_length: int) -> Int[Tensor, "length"]:
    """How many clean tokens each token of a canvas sees: those before its block."""
    return torch.arange(length) // block_length * block_length


def block_canvases(
    batch: TokenBatch, block_length: int, mask_token_id: int, generator: Generator, complementary: bool = True
) -> list[tuple[Segment, Target]]:
    """The noisy copies of `block_layout`; they need the clean copy beside them or in a cache, if blocks are shorter."""
    length = batch.tokens.shape[1]
    reach = block_reach(length, block_length)
    return canvases_of(batch, torch.arange(length), block_length, reach, mask_token_id, generator, complementary)


def canvases_of(
    batch: TokenBatch,
    places: Int[Tensor, "length"],
    block_length: int,
    reach: Int[Tensor, "length"],
    mask_token_id: int,
    generator: Generator,
    complementary: bool,
) -> list[tuple[Segment, Target]]:
    """The tokens at `places` in canvases of `block_length`, some hidden; the complementary copy hides the others."""
    hidden, time = hide_exactly(len(batch.tokens), len(places), block_length, generator)
    views = [(hidden, time)] + ([(~hidden, 1 - time)] if complementary else [])
    num_blocks = -(-len(places) // block_length)
    return [
        canvas_of(batch, places, block_length, hide, at, mask_token_id, i * num_blocks, reach)
        for i, (hide, at) in enumerate(views)
    ]


def block_layout(
    batch: TokenBatch, block_length: int, mask_token_id: int, generator: Generator, complementary: bool = True
) -> list[tuple[Segment, Target]]:
    """A clean causal copy, and noisy copies whose blocks see themselves and the clean blocks before them.

    The complementary copy hides what the first shows, so that every token is learned from once (arXiv:2406.07524 trains
    on independent masks; the pair halves the variance). It never hides a whole block, so a pair is not quite the NELBO:
    the patterns that hide everything count half. A block as long as the sequence is classical masked diffusion.
    """
    return [clean_copy(batch), *block_canvases(batch, block_length, mask_token_id, generator, complementary)]


def infill_layout(
    batch: TokenBatch,
    starts: Sequence[int],
    gap_length: int,
    mask_token_id: int,
    generator: Generator,
    complementary: bool = False,
) -> list[tuple[Segment, Target]]:
    """Gaps of one length, each a canvas that sees itself and all the clean tokens before and after it.

    The gaps do not see each other: what stands in the others is missing, as where a text has several holes. The
    complementary copies hide what the first show.
    """
    rows, length = batch.tokens.shape
    places = torch.cat([torch.arange(start, start + gap_length) for start in starts])
    reach = torch.full((len(places),), length)
    canvases = canvases_of(batch, places, gap_length, reach, mask_token_id, generator, complementary)
    in_gap = torch.zeros(length, dtype=torch.bool)
    in_gap[places] = True
    outside = torch.arange(length)[~in_gap]
    if not len(outside):
        return canvases
    context = Segment(
        batch.modality,
        batch.tokens[:, outside],
        positions=outside.float().expand(rows, len(outside)),
        document=batch.documents[:, outside],
    )
    target = next_token_target(batch)
    kept = Target(target.labels[:, outside], target.weight[:, outside])
    return [(context, kept), *canvases]


def next_token_target(batch: TokenBatch) -> Target:
    """Each context token predicts the next one of its document."""
    labels = torch.full_like(batch.tokens, IGNORED_LABEL)
    same = batch.documents[:, 1:] == batch.documents[:, :-1]
    labels[:, :-1] = batch.tokens[:, 1:].masked_fill(~same, IGNORED_LABEL)
    return Target(labels, torch.ones(batch.tokens.shape))
