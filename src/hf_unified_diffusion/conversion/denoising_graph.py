"""One denoising pass over tokens as a module of plain tensors, for exporters that know no segments and no caches."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..contracts import Segment
from ..modeling.attention_rule import AttentionPlan, ContextCache, TokenRoles, visible
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..modeling.segments import roles_of
from ..quantization.integer import levels_of
from ..quantization.modules import QuantizedEmbedding, QuantizedWeight

# name of an input -> names of its axes; lengths of context, canvas and cache are free, each at least 1
INPUT_AXES = {
    "context_ids": ("batch", "context"),
    "context_mask": ("batch", "context"),
    "context_positions": ("batch", "context"),
    "canvas_ids": ("batch", "canvas"),
    "canvas_mask": ("batch", "canvas"),
    "canvas_positions": ("batch", "canvas"),
    "time": ("batch",),
    "cached": ("layers", "two", "batch", "heads", "cached", "head_dim"),
    "cached_mask": ("batch", "cached"),
}
OUTPUT_NAMES = ("logits", "keys_and_values")
FREE_AXES = ("batch", "context", "canvas", "cached")


class DenoisingGraph(nn.Module):
    """Clean context, a noisy canvas and cached context in; logits and the context's keys and values out.

    Tokens whose mask is False are padding: no real token sees them. Where there is no context, no canvas or no cache,
    give one token of padding, because exported graphs have no empty axes. One position a token stands for all three
    axes, as in text.

    Args:
        model: in evaluation, without adapters or controls; its layers may be those of `unpacked_in_graph`.
        modality: of both segments, one of the model's modalities of tokens.

    Usage:
        graph = DenoisingGraph(model, "text")
        logits, _ = graph(**example_inputs(model.config, batch=1, context=4, canvas=8, cached=2))
        logits[:, 4:]  # of the canvas
    """

    def __init__(self, model: UnifiedDiffusionModel, modality: str):
        super().__init__()
        known = sorted(name for name, spec in model.config.modalities.items() if spec["kind"] == "token")
        if modality not in known:
            raise ValueError(f"modality of a graph must be one of tokens, {known}, got {modality!r}")
        self.model, self.modality = model, modality

    def forward(
        self,
        context_ids: Int[Tensor, "batch context"],
        context_mask: Bool[Tensor, "batch context"],
        context_positions: Float[Tensor, "batch context"],
        canvas_ids: Int[Tensor, "batch canvas"],
        canvas_mask: Bool[Tensor, "batch canvas"],
        canvas_positions: Float[Tensor, "batch canvas"],
        time: Float[Tensor, "batch"],
        cached: Float[Tensor, "layers two batch heads cached head_dim"],
        cached_mask: Bool[Tensor, "batch cached"],
    ) -> tuple[Float[Tensor, "batch context+canvas vocab"], Float[Tensor, "layers two batch heads context head_dim"]]:
        """The pass of `UnifiedDiffusionModel.features` and its heads, past the checks at the door."""
        model, num_context, num_cached = self.model, context_ids.shape[1], cached.shape[4]
        cache = ContextCache()
        cache.keys, cache.values = list(cached[:, 0].unbind(0)), list(cached[:, 1].unbind(0))
        cache.document = cached_mask.long() - 1
        segments = [
            Segment(self.modality, context_ids, mask=context_mask),
            Segment(self.modality, canvas_ids, time=time, mask=canvas_mask),
        ]
        x = torch.cat([model.embed(segment) for segment in segments], dim=1)
        positions = torch.cat([context_positions, canvas_positions], dim=1)[..., None].expand(-1, -1, 3)
        roles = roles_of(segments, num_cached)
        mask = visible(roles, TokenRoles.join([cache.roles(x.shape[0], x.device), roles]))
        # one run of queries under one mask: the rule is the same, and the graph half as large
        plan = AttentionPlan(x.shape[1], mask, None, context_is_causal=False).additive(x.dtype)
        hidden = model.shared_transformer(x, positions, plan, cache, keep=True)
        new = slice(num_cached, num_cached + num_context)
        keys, values = (torch.stack([x[:, :, new] for x in side]) for side in (cache.keys, cache.values))
        return model.decode(hidden, self.modality), torch.stack([keys, values], dim=1)


def example_inputs(config, batch: int, context: int, canvas: int, cached: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of a `DenoisingGraph`, without padding; float32, int64 and bool.

    Usage: `inputs = example_inputs(model.config, batch=2, context=3, canvas=5, cached=4)`
    """
    generator = torch.Generator().manual_seed(seed)
    heads = (config.num_key_value_heads, cached, config.head_size)

    def segment(name: str, start: int, length: int) -> dict[str, Tensor]:
        return {
            f"{name}_ids": torch.randint(0, config.vocab_size, (batch, length), generator=generator),
            f"{name}_mask": torch.ones(batch, length, dtype=torch.bool),
            f"{name}_positions": torch.arange(start, start + length).float().repeat(batch, 1),
        }

    return {
        **segment("context", cached, context),
        **segment("canvas", cached + context, canvas),
        "time": torch.rand(batch, generator=generator),
        "cached": torch.randn(config.num_hidden_layers, 2, batch, *heads, generator=generator),
        "cached_mask": torch.ones(batch, cached, dtype=torch.bool),
    }


def dynamic_shapes(longest: int, largest_batch: int = 1024) -> Mapping[str, dict[int, torch.export.Dim]]:
    """Which axes of the inputs are free, for `torch.export.export`."""
    dims = {
        name: torch.export.Dim(name, min=1, max=largest_batch if name == "batch" else longest) for name in FREE_AXES
    }
    return {
        name: {place: dims[axis] for place, axis in enumerate(axes) if axis in FREE_AXES}
        for name, axes in INPUT_AXES.items()
    }


class GraphMatrix(nn.Module):
    """A packed matrix unpacked by looking up each byte: what all exporters take, unlike bits and views of words.

    Runtimes that fold constants unpack it once as they load; torch.export unpacks it at each pass.
    """

    def __init__(self, layer: QuantizedWeight):
        super().__init__()
        every_byte = torch.arange(256, dtype=torch.uint8)
        self.register_buffer("codes", layer.weight.detach())
        self.register_buffer("scale", layer.weight_scale)
        self.register_buffer("levels", levels_of(every_byte, layer.bits).view(256, -1))
        outer, inner = layer.merged_factors() if layer.merged_rank else (None, None)
        self.register_buffer("outer", None if outer is None else outer.T.contiguous())
        self.register_buffer("inner", inner)

    def rows(self, rows: Int[Tensor, "*shape"] | slice = slice(None)) -> Float[Tensor, "*shape columns"]:
        """Dense rows, all or some."""
        codes, scale = self.codes[rows], self.scale[rows]
        levels = nn.functional.embedding(codes.int(), self.levels).flatten(-2)
        dense = (levels.unflatten(-1, (scale.shape[-1], -1)) * scale.float()[..., None]).flatten(-2)
        return dense if self.outer is None else dense + self.outer[rows] @ self.inner


class GraphLinear(GraphMatrix):
    """A linear layer over a `GraphMatrix`."""

    def __init__(self, layer: QuantizedWeight):
        super().__init__(layer)
        self.bias = layer.bias

    def forward(self, x: Float[Tensor, "*shape in"]) -> Float[Tensor, "*shape out"]:
        """As `nn.Linear`."""
        return nn.functional.linear(x, self.rows(), self.bias)


class GraphEmbedding(GraphMatrix):
    """A token embedding over a `GraphMatrix`."""

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """The rows of the ids."""
        return self.rows(ids)

    def unembed(self, hidden: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape vocab"]:
        """Inner products with every row."""
        return nn.functional.linear(hidden, self.rows())


def unpacked_in_graph(model: UnifiedDiffusionModel) -> UnifiedDiffusionModel:
    """The model with packed layers that a graph can unpack, in place.

    Usage: `DenoisingGraph(unpacked_in_graph(model), "text")`
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedWeight):
            kind = GraphEmbedding if isinstance(module, QuantizedEmbedding) else GraphLinear
            model.set_submodule(name, kind(module))
    return model
