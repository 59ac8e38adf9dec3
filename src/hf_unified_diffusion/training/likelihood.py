"""Held-out likelihood in nats per token and bits per byte: exact for the causal path, a bound or exact for canvases."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from ..contracts import Segment
from ..modeling.attention_rule import ContextCache
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .layouts import IGNORED_LABEL, TokenBatch, block_canvases, block_reach, canvas_of, clean_copy, next_token_target

ORDERS = ("left_to_right", "confidence", "random")
LONGEST_RANDOM_BLOCK = 10  # tokens: 2^10 - 1 canvas passes, and as many partial likelihoods a block
RowTotals = tuple[Float[Tensor, "rows"], Int[Tensor, "rows"]]  # nats of each row, and how many tokens they are for


@dataclass(frozen=True)
class Likelihood:
    """Held-out likelihood with its uncertainty.

    Attributes:
        nats_per_token: mean over tokens.
        confidence: half-width of the 95% interval over sequences, nats per token; infinite for a single sequence.
        bits_per_byte: the same likelihood by bytes.
        perplexity: exp(nats_per_token).
    """

    nats_per_token: float
    confidence: float
    bits_per_byte: float
    perplexity: float

    @staticmethod
    def of(nats: Float[Tensor, "rows"], tokens: Int[Tensor, "rows"], num_bytes: Int[Tensor, "rows"]) -> "Likelihood":
        """From totals per sequence; the interval is that of a ratio of means."""
        nats, rows = nats.double(), len(nats)
        mean = (nats.sum() / tokens.sum()).item()
        spread = math.inf
        if rows > 1:
            spread = ((nats - mean * tokens).std() / tokens.double().mean() / math.sqrt(rows)).item()
        bits = (nats.sum() / num_bytes.sum() / math.log(2)).item()
        return Likelihood(mean, 1.96 * spread, bits, math.exp(mean))


def counted_tokens(batch: TokenBatch) -> Bool[Tensor, "rows length"]:
    """Tokens with a predecessor in their document: every likelihood here answers for exactly these."""
    same = batch.documents[:, 1:] == batch.documents[:, :-1]
    return F.pad(same, (1, 0), value=False)


@torch.no_grad()
def causal_nats(model: UnifiedDiffusionModel, batch: TokenBatch) -> RowTotals:
    """Exact next-token nats of each row."""
    labels = next_token_target(batch).labels
    context = Segment(batch.modality, batch.tokens, document=batch.documents).to(model.device)
    (hidden,), _ = model.features([context])
    logits = model.decode(hidden, batch.modality).transpose(1, 2).float()
    nats = F.cross_entropy(logits, labels.to(model.device), ignore_index=IGNORED_LABEL, reduction="none")
    return nats.sum(dim=1).cpu(), (labels != IGNORED_LABEL).sum(dim=1)


@torch.no_grad()
def clean_context(model: UnifiedDiffusionModel, batch: TokenBatch, block_length: int) -> ContextCache:
    """The cache of the clean tokens that blocks see; empty where one block is the whole sequence and sees none."""
    cache = ContextCache()
    if block_length < batch.tokens.shape[1]:
        context, _ = clean_copy(batch)
        model.features([context.to(model.device)], cache=cache, use_cache=True)
    return cache


@torch.no_grad()
def log_probabilities(
    model: UnifiedDiffusionModel, canvas: Segment, asked: Bool[Tensor, "rows length"], cache: ContextCache
) -> Float[Tensor, "asked vocab"]:
    """What the model gives each value of the asked tokens of a canvas, on the model's device."""
    (hidden,), _ = model.features([canvas.to(model.device)], cache=cache)
    logits = model.decode(hidden[asked.to(model.device)], canvas.modality)
    return logits.float().log_softmax(dim=-1)


def scattered(values: Float[Tensor, "asked"], asked: Bool[Tensor, "rows length"], fill: float) -> Tensor:
    """Float (rows, length), the values at the asked places and `fill` elsewhere."""
    return torch.full(asked.shape, fill).masked_scatter(asked, values.cpu())


def canvas_nats(
    model: UnifiedDiffusionModel, batch: TokenBatch, block_length: int, draws: int, generator: Generator
) -> RowTotals:
    """The NELBO of each row in nats, an upper bound in expectation over masks (arXiv:2406.03736, section 3).

    Tokens without a predecessor in their document are masked like others, but their cost is left out.
    """
    counted, cache = counted_tokens(batch), clean_context(model, batch, block_length)
    total = torch.zeros(batch.tokens.shape[0])
    for _ in range(draws):
        mask_token_id = model.config.mask_token_id
        ((canvas, target),) = block_canvases(batch, block_length, mask_token_id, generator, complementary=False)
        asked = (target.labels != IGNORED_LABEL) & counted
        log_probs = log_probabilities(model, canvas, asked, cache)
        nats = F.nll_loss(log_probs, target.labels[asked].to(log_probs.device), reduction="none")
        total += (scattered(nats, asked, 0.0) * target.weight).sum(dim=1)
    return total / draws, counted.sum(dim=1)


def in_blocks(x: Tensor, block_length: int) -> Tensor:
    """(rows, length) as (rows, blocks, block_length), zero or False past the end."""
    return F.pad(x, (0, -x.shape[1] % block_length)).unflatten(1, (-1, block_length))


def hidden_share(hidden: Bool[Tensor, "rows length"], block_length: int) -> Float[Tensor, "rows length"]:
    """The share of its block that is hidden, for each token: the time of the canvas."""
    share = in_blocks(hidden, block_length).sum(dim=-1) / in_blocks(torch.ones_like(hidden), block_length).sum(dim=-1)
    return share.repeat_interleave(block_length, dim=1)[:, : hidden.shape[1]]


def first_of_each_block(
    score: Float[Tensor, "rows length"], block_length: int, among: Bool[Tensor, "rows length"]
) -> Bool[Tensor, "rows length"]:
    """The place of the highest score of each block, the leftmost of equals, looking only `among` some places."""
    score = F.pad(score.masked_fill(~among, -math.inf), (0, -score.shape[1] % block_length), value=-math.inf)
    best = score.unflatten(1, (-1, block_length)).argmax(dim=-1, keepdim=True)
    chosen = torch.zeros(*best.shape[:2], block_length, dtype=torch.bool).scatter(2, best, True)
    return chosen.flatten(1)[:, : among.shape[1]] & among


def unmasking_nats(model: UnifiedDiffusionModel, batch: TokenBatch, block_length: int, order: str) -> RowTotals:
    """Exact nats of each row under unmasking one token of a block at a time.

    The sampler it is the likelihood of: tokens without a predecessor in their document are given; each block starts
    hidden after clean context; the place to fill follows from what is visible (DUEL) or is drawn evenly from the hidden
    ones; its token is drawn from the model. All blocks of all rows are scored together, so a fixed order costs as many
    canvas passes as a block has tokens, the random one 2^n - 1.

    Args:
        order: "left_to_right"; "confidence": the place whose most probable token is the most probable of its block;
            "random": the sampler whose bound `canvas_nats` is.

    Raises:
        ValueError: for an unknown order, or blocks too long for the random one.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
    if order == "random":
        return random_order_nats(model, batch, block_length)
    counted, cache = counted_tokens(batch), clean_context(model, batch, block_length)
    length, mask_token_id = batch.tokens.shape[1], model.config.mask_token_id
    reach, hidden, total = block_reach(length, block_length), counted, torch.zeros(batch.tokens.shape[0])
    leftward = -torch.arange(length).float().expand_as(batch.tokens)
    while hidden.any():
        time = hidden_share(hidden, block_length)
        canvas, _ = canvas_of(batch, torch.arange(length), block_length, hidden, time, mask_token_id, 0, reach)
        asked = first_of_each_block(leftward, block_length, hidden) if order == "left_to_right" else hidden
        log_probs = log_probabilities(model, canvas, asked, cache)
        nats = F.nll_loss(log_probs, batch.tokens[asked].to(log_probs.device), reduction="none")
        chosen = first_of_each_block(scattered(log_probs.amax(dim=-1), asked, -math.inf), block_length, asked)
        total += (scattered(nats, asked, 0.0) * chosen).sum(dim=1)
        hidden = hidden & ~chosen
    return total, counted.sum(dim=1)


def random_order_nats(model: UnifiedDiffusionModel, batch: TokenBatch, block_length: int) -> RowTotals:
    """Exact nats of each row where every token of a block is drawn at an evenly random hidden place.

    A block's likelihood is the mean over all orders of the product of its tokens' probabilities. The probability of
    having come to a set V of visible places, all tokens right, is the sum over i in V of that of V without i, times
    p(token i | V without i) over the number of places hidden then: one canvas pass for each set but the last.
    """
    length = batch.tokens.shape[1]
    size = min(block_length, length)
    if size > LONGEST_RANDOM_BLOCK:
        raise ValueError(f"random order needs blocks of at most {LONGEST_RANDOM_BLOCK} tokens, got {size}")
    counted, cache = counted_tokens(batch), clean_context(model, batch, block_length)
    bits = 1 << torch.arange(size)
    given = (~in_blocks(counted, size) * bits).sum(dim=-1)  # as a set: bit i for place i of a block
    reached = torch.full((*given.shape, 1 << size), -math.inf, dtype=torch.float64)
    reached.scatter_(2, given[..., None], 0.0)
    places, reach = torch.arange(length) % size, block_reach(length, block_length)
    for visible in range((1 << size) - 1):
        hidden = counted & ((visible & bits) == 0)[places]
        if not hidden.any():
            continue
        time = hidden_share(hidden, size)
        canvas, _ = canvas_of(
            batch, torch.arange(length), block_length, hidden, time, model.config.mask_token_id, 0, reach
        )
        log_probs = log_probabilities(model, canvas, hidden, cache)
        chosen = log_probs.gather(1, batch.tokens[hidden].to(log_probs.device)[:, None])[:, 0]
        steps = in_blocks(scattered(chosen, hidden, -math.inf), size).double()
        before = reached[..., visible] - math.log(size - visible.bit_count())
        for i in range(size):
            if not visible >> i & 1:
                after = visible | 1 << i
                reached[..., after] = torch.logaddexp(reached[..., after], before + steps[..., i])
    return -reached[..., -1].sum(dim=1).float(), counted.sum(dim=1)


def held_out_likelihood(
    model: UnifiedDiffusionModel,
    batches: Sequence[TokenBatch],
    sizes: Int[Tensor, "vocab"],
    block_length: int | None,
    draws: int = 4,
    seed: int = 0,
    order: str | None = None,
) -> Likelihood:
    """Likelihood of held-out sequences: the causal path for block_length None, else that of blocks of this length.

    Args:
        sizes: bytes of each token (`bytes_per_token`).
        draws: masks drawn for each sequence; the bound holds in expectation for any number.
        order: None for the NELBO, else the exact likelihood of unmasking in this order (`unmasking_nats`).

    Raises:
        ValueError: no batches, block_length below 1, or an order without a block_length.

    Usage: `held_out_likelihood(model, [packed.rows(starts, 256)], bytes_per_token(tokenizer), 16, order="confidence")`
    """
    if not batches:
        raise ValueError("held-out likelihood needs at least one batch, got none")
    if block_length is not None and block_length < 1:
        raise ValueError(f"block_length must be at least 1, got {block_length}")
    if block_length is None and order is not None:
        raise ValueError(f"the causal path has no order of unmasking: give a block_length, or no order, got {order!r}")
    generator = Generator().manual_seed(seed)

    def totals(batch: TokenBatch) -> RowTotals:
        if block_length is None:
            return causal_nats(model, batch)
        if order is None:
            return canvas_nats(model, batch, block_length, draws, generator)
        return unmasking_nats(model, batch, block_length, order)

    was_training = model.training
    model.eval()
    try:
        nats, tokens = (torch.cat(parts) for parts in zip(*map(totals, batches), strict=True))
    finally:
        model.train(was_training)
    num_bytes = torch.cat([(sizes[batch.tokens] * counted_tokens(batch)).sum(dim=1) for batch in batches])
    return Likelihood.of(nats, tokens, num_bytes)
