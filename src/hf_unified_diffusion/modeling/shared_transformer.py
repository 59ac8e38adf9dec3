"""The trunk that serves every modality: a Llama-shaped transformer under the one mask rule."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..contracts import Condition
from .attention_rule import AttentionPlan, ContextCache, attention_dtype
from .configuration_unified_diffusion import UnifiedDiffusionConfig
from .embeddings import SectionedRotary, rotate

Hidden = Float[Tensor, "batch length width"]
Hook = Callable[[int, Hidden], Hidden]  # (layer, hidden states before it) -> as the layer shall see them
NewContext = dict[int, tuple[Tensor, Tensor]]  # by layer: keys and values, each (batch, heads, context, head_dim)
MOST_SCORES = 1 << 20  # queries times keys of a head; beyond, the scores kept for the gradient cost too much memory
MOST_SCORES_AT_ONCE = 1 << 22  # of all heads, without a gradient; beyond, they leave the processor's cache
FEWEST_QUERIES = 8  # below, one kernel is less work than three


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in float32 (arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*shape size"]) -> Float[Tensor, "*shape size"]:
        """Same shape and dtype."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def faster_by_matmuls(query: Tensor, key: Tensor) -> bool:
    """Whether to have scores in memory: 2 to 3 times as fast as torch's flash kernel in bfloat16 on a CPU."""
    if query.device.type != "cpu" or attention_dtype(query) is not torch.bfloat16:
        return False
    batch, heads, queries, _ = query.shape
    scores = queries * key.shape[2]
    if query.requires_grad:
        return scores <= MOST_SCORES
    return queries >= FEWEST_QUERIES and batch * heads * scores <= MOST_SCORES_AT_ONCE


def attend_by_matmuls(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """`attend`, by two products and a softmax; the heads of a group stand in one long query."""
    groups, queries, keys = key.shape[1], query.shape[2], key.shape[2]
    query, key, value = (x.to(attention_dtype(x)) for x in (query, key, value))
    scaled = query.unflatten(1, (groups, -1)).flatten(2, 3) * query.shape[-1] ** -0.5
    scores = (scaled @ key.transpose(-1, -2)).view(*query.shape[:3], keys)
    if is_causal:
        mask = torch.full((queries, keys), float("-inf"), dtype=scores.dtype).triu(1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask
    return (scores.softmax(dim=-1).view(len(query), groups, -1, keys) @ value).view(query.shape)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
    """Scaled dot-product attention with grouped heads: (B, H, Q, D) over (B, H_kv, K, D), to (B, H, Q, D)."""
    repeats = query.shape[1] // key.shape[1]
    if faster_by_matmuls(query, key):
        return attend_by_matmuls(query, key, value, mask, is_causal)
    if repeats == 1:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
    if mask is None and not is_causal:  # the heads of a group stand in one long query: nothing to copy at every step
        grouped = query.unflatten(1, (-1, repeats)).flatten(2, 3)
        attended = F.scaled_dot_product_attention(grouped, key, value)
        return attended.unflatten(2, (repeats, -1)).flatten(1, 2)
    # not enable_gqa: its gradient has no flash kernel on CPU
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)


class SelfAttention(nn.Module):
    """Grouped-query attention with sectioned rotary positions; context first, then canvas."""

    def __init__(self, config: UnifiedDiffusionConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_size
        queries, keys = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_size, config.rms_norm_eps) if config.use_qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_size, config.rms_norm_eps) if config.use_qk_norm else nn.Identity()

    def heads(self, x: Tensor) -> Float[Tensor, "batch heads length head_dim"]:
        """Split the last axis; -1 heads, because tensor parallelism leaves each rank some of them."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        x: Hidden,
        rotation: tuple[Tensor, Tensor],
        plan: AttentionPlan,
        cache: ContextCache,
        new: NewContext | None,
    ) -> Hidden:
        """Attend by the plan; the context tokens' keys and values are put into `new`, if it is given."""
        query = rotate(self.q_norm(self.heads(self.q_proj(x))), *rotation)
        key = rotate(self.k_norm(self.heads(self.k_proj(x))), *rotation)
        value = self.heads(self.v_proj(x))
        num_context = plan.num_context
        # asked first, so that compiled training has one graph for all layers: none of them reads its number
        all_keys, all_values = cache.extended(self.layer, key, value) if cache.keys else (key, value)
        parts = []
        if num_context:
            stop = cache.length + num_context
            parts.append(
                attend(
                    query[:, :, :num_context],
                    all_keys[:, :, :stop],
                    all_values[:, :, :stop],
                    plan.context_mask,
                    plan.context_is_causal,
                )
            )
        if num_context < x.shape[1]:
            parts.append(attend(query[:, :, num_context:], all_keys, all_values, plan.canvas_mask))
        if new is not None:
            new[self.layer] = key[:, :, :num_context], value[:, :, :num_context]
        attended = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention to condition tokens behind a gate that starts at zero (Flamingo, arXiv:2204.14198, eq. 2)."""

    def __init__(self, config: UnifiedDiffusionConfig):
        super().__init__()
        self.head_dim = config.head_size
        queries, keys = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.condition_size, keys, bias=False)
        self.v_proj = nn.Linear(config.condition_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Hidden, condition: Condition) -> Hidden:
        """What the condition adds; zero for a sample none of whose condition tokens are real."""
        query, key, value = (
            y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for y in (self.q_proj(self.norm(x)), self.k_proj(condition.tokens), self.v_proj(condition.tokens))
        )
        if condition.strength is not None:
            value = value * condition.strength[:, None, :, None].to(value.dtype)
        present = condition.mask.any(dim=1)
        allowed = condition.mask | ~present[:, None]  # an empty row would give NaN
        attended = attend(query, key, value, allowed[:, None, None, :].expand(-1, 1, x.shape[1], -1))
        added = self.o_proj(attended.transpose(1, 2).flatten(2))
        return self.gate.tanh() * added * present[:, None, None]


class GatedMLP(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, config: UnifiedDiffusionConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Hidden) -> Hidden:
        """Same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TransformerLayer(GradientCheckpointingLayer):
    """Attention, sometimes attention to a condition, then the MLP; each added to what came in."""

    def __init__(self, config: UnifiedDiffusionConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer)
        every = config.cross_attention_every
        self.cross_attn = CrossAttention(config) if every and layer % every == every - 1 else None
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Hidden,
        rotation: tuple[Tensor, Tensor],
        plan: AttentionPlan,
        cache: ContextCache,
        new: NewContext | None,
        condition: Condition | None,
    ) -> Hidden:
        """Same shape."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotation, plan, cache, new))
        if condition is not None and self.cross_attn is not None:
            x = x + self.cross_attn(x, condition)
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class SharedTransformer(nn.Module):
    """All layers and the last norm; it knows tokens and their roles, and no modality."""

    def __init__(self, config: UnifiedDiffusionConfig):
        super().__init__()
        self.rotary = SectionedRotary(config)
        self.layers = nn.ModuleList(TransformerLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Hidden,
        positions: Float[Tensor, "batch length 3"],
        plan: AttentionPlan,
        cache: ContextCache,
        keep: bool = False,
        condition: Condition | None = None,
        control: Hook | None = None,
    ) -> Hidden:
        """Context tokens first, then canvas tokens; with `keep` the context joins the cache.

        `control` is called before each layer, and with the number of layers after the last.
        """
        rotation = self.rotary(positions, x.dtype)
        # Layers read a copy and write elsewhere: gradient checkpointing runs them again after the cache has grown.
        given = cache.copy()
        new: NewContext | None = {} if keep and plan.num_context else None
        for number, layer in enumerate(self.layers):
            x = x if control is None else control(number, x)
            x = layer(x, rotation, plan, given, new, condition)
        x = x if control is None else control(len(self.layers), x)
        for index, (key, value) in (new or {}).items():
            cache.append(index, key, value)
        return self.norm(x)

    def lower(self, x: Hidden, positions: Float[Tensor, "batch length 3"], plan: AttentionPlan, depth: int) -> Hidden:
        """The hidden states before layer `depth`, of tokens that no cache knows or will know."""
        rotation, nothing = self.rotary(positions, x.dtype), ContextCache()
        for layer in self.layers[:depth]:
            x = layer(x, rotation, plan, nothing, None, None)
        return x
