"""The one mask rule, and the cache of clean context that it allows.

Clean context is causal. A noisy canvas is bidirectional and sees the context it can reach. So a canvas of one token is
autoregression, a block is block diffusion, the whole sequence is classical masked diffusion: one rule, other canvases.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

EVERYTHING = 1 << 40  # a reach no context is longer than
ALIGNED = 8  # numbers of a mask's row, on a GPU


@dataclass(frozen=True)
class TokenRoles:
    """What decides who sees whom; each (B, n) int64.

    Attributes:
        document: tokens of different documents never see each other; -1 is padding.
        canvas: 0 for context, above 0 the canvas a token belongs to.
        rank: place of a context token in its context, from 0.
        reach: a token sees context of rank below its reach.
    """

    document: Int[Tensor, "batch length"]
    canvas: Int[Tensor, "batch length"]
    rank: Int[Tensor, "batch length"]
    reach: Int[Tensor, "batch length"]

    @staticmethod
    def join(parts: Sequence["TokenRoles"]) -> "TokenRoles":
        """The roles of several runs of tokens, one after the other."""
        names = ("document", "canvas", "rank", "reach")
        return TokenRoles(*(torch.cat([getattr(part, name) for part in parts], dim=1) for name in names))

    def slice(self, start: int, stop: int | None) -> "TokenRoles":
        """Tokens start..stop."""
        return TokenRoles(*(x[:, start:stop] for x in (self.document, self.canvas, self.rank, self.reach)))


def visible(query: TokenRoles, key: TokenRoles) -> Bool[Tensor, "batch 1 query key"]:
    """The mask rule: True where a query token may attend to a key token.

    Padding (document -1) sees padding only, so that no row of the softmax is empty and no real token is touched by it.
    """
    same_document = query.document[:, :, None] == key.document[:, None, :]
    reached_context = (key.canvas == 0)[:, None, :] & (key.rank[:, None, :] < query.reach[:, :, None])
    same_canvas = (query.canvas > 0)[:, :, None] & (query.canvas[:, :, None] == key.canvas[:, None, :])
    return (same_document & (reached_context | same_canvas))[:, None]


@dataclass(frozen=True)
class AttentionPlan:
    """How a layer attends: the first `num_context` queries among context, the rest to everything given.

    A mask of None means that nothing is hidden (for the context: nothing but the future). Masks are bool, True where
    visible, until `additive` makes them numbers to add.
    """

    num_context: int
    context_mask: Bool[Tensor, "batch 1 context key"] | None
    canvas_mask: Bool[Tensor, "batch 1 canvas key"] | None
    context_is_causal: bool

    def additive(self, dtype: torch.dtype) -> "AttentionPlan":
        """The same plan with masks of 0 and -inf: made once, where attention would make them in every layer.

        On a GPU their rows begin at multiples of `ALIGNED` numbers, which torch's kernels copy them for otherwise.
        """

        def bias(mask: Tensor | None) -> Tensor | None:
            if mask is None:
                return None
            keys = mask.shape[-1]
            room = -(-keys // ALIGNED) * ALIGNED if mask.is_cuda else keys
            empty = mask.new_zeros((*mask.shape[:-1], room), dtype=dtype)[..., :keys]
            return empty.masked_fill_(~mask, float("-inf"))

        return replace(self, context_mask=bias(self.context_mask), canvas_mask=bias(self.canvas_mask))


def attention_dtype(x: Tensor) -> torch.dtype:
    """What attention computes x in, autocast considered."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class ContextCache:
    """Keys and values of clean context, computed once and read by every denoising step.

    Usage:
        cache = model(prompt_ids, use_cache=True).cache
        model(canvas_ids, timestep=t, cache=cache)
    """

    def __init__(self) -> None:
        self.keys: list[Float[Tensor, "batch heads length head_dim"]] = []
        self.values: list[Float[Tensor, "batch heads length head_dim"]] = []
        self.document: Int[Tensor, "batch length"] | None = None  # None: one document, no padding
        self.next_position: Float[Tensor, batch] | None = None

    def __len__(self) -> int:
        return self.length

    @property
    def length(self) -> int:
        """Cached tokens; unlike `len` it stays symbolic while a graph is traced."""
        return self.keys[0].shape[2] if self.keys else 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Cached tokens, under transformers' name."""
        return len(self)

    def extended(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The cached keys and values of a layer followed by new ones; the cache itself is unchanged."""
        if layer >= len(self.keys):
            return key, value
        return torch.cat([self.keys[layer], key], dim=2), torch.cat([self.values[layer], value], dim=2)

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep new keys and values of a layer."""
        key, value = self.extended(layer, key, value)
        if layer < len(self.keys):
            self.keys[layer], self.values[layer] = key, value
        else:
            self.keys.append(key)
            self.values.append(value)

    def remember(self, roles: TokenRoles | None, num_context: int, end: Float[Tensor, "batch"]) -> None:
        """Note whose the newest `num_context` tokens are, and where the next token goes."""
        self.next_position = end
        if roles is not None:
            new, kept = roles.document[:, :num_context], self.document
            if kept is None:
                kept = torch.zeros(new.shape[0], self.length - num_context, dtype=new.dtype, device=new.device)
            self.document = torch.cat([kept, new], dim=1)

    def select(self, rows: Int[Tensor, "rows"]) -> "ContextCache":
        """A cache of the given rows of the batch, in that order; rows may repeat."""
        chosen = ContextCache()
        chosen.keys = [key[rows] for key in self.keys]
        chosen.values = [value[rows] for value in self.values]
        chosen.document = None if self.document is None else self.document[rows]
        chosen.next_position = None if self.next_position is None else self.next_position[rows]
        return chosen

    def copy(self) -> "ContextCache":
        """A cache that can grow on its own; tensors are shared, appending makes new ones."""
        other = ContextCache()
        other.keys, other.values = list(self.keys), list(self.values)
        other.document, other.next_position = self.document, self.next_position
        return other

    def roles(self, batch: int, device: torch.device) -> TokenRoles:
        """The roles of the cached tokens."""
        length = self.length
        rank = torch.arange(length, device=device).expand(batch, length)
        zeros = torch.zeros_like(rank)
        return TokenRoles(zeros if self.document is None else self.document, zeros, rank, rank + 1)


def plan_attention(roles: TokenRoles | None, num_context: int, num_tokens: int, cache: ContextCache) -> AttentionPlan:
    """The cheapest attention that obeys the mask rule for context tokens followed by canvas tokens.

    Without roles nothing is padded, packed or limited, and the whole rule is a causal context and an open canvas.
    """
    num_cached = cache.length
    if roles is None and cache.document is None:
        if num_context <= 1 or num_cached == 0:
            return AttentionPlan(num_context, None, None, context_is_causal=num_context > 1)
        device = cache.keys[0].device
        causal = torch.ones(num_context, num_cached + num_context, dtype=torch.bool, device=device).tril(num_cached)
        return AttentionPlan(num_context, causal[None, None], None, context_is_causal=False)
    if roles is None:
        raise ValueError("a cache of padded context needs the roles of the new tokens")
    keys = TokenRoles.join([cache.roles(roles.rank.shape[0], roles.rank.device), roles])
    context, canvas = roles.slice(0, num_context), roles.slice(num_context, None)
    return AttentionPlan(
        num_context,
        visible(context, keys.slice(0, num_cached + num_context)) if num_context else None,
        visible(canvas, keys) if num_tokens > num_context else None,
        context_is_causal=False,
    )
