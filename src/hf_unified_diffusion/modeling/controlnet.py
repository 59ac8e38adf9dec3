"""ControlNets: narrow copies of trunk blocks that read a hint, and add to the trunk's hidden states (arXiv:2302.05543).

What is added is learned from zero, so that a fresh ControlNet changes nothing. The blocks start from the trunk's hidden
states before one layer and write above it: training needs no gradient below, and what several ControlNets add is a sum,
since none reads what another one wrote.

Their sequence is [hint | context | canvas], under the one mask rule: the hint is clean context that stands before the
context. So it is read once, its keys and values serve every pass, and the context stays causal with what is added.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import Segment
from .attention_rule import ContextCache, TokenRoles, attention_dtype, plan_attention
from .checks import check_positions, check_roles, check_values
from .configuration_controlnet import UnifiedControlNetConfig, base_architecture
from .embeddings import PreciseLinear, SectionedRotary, ZeroLinear
from .modeling_unified_diffusion import UnifiedDiffusionModel
from .narrow_copies import copy_narrow
from .pretrained import UnifiedDiffusionPreTrainedModel
from .segments import layout
from .shared_transformer import Hidden, NewContext, RMSNorm, TransformerLayer


class UnifiedControlNetModel(UnifiedDiffusionPreTrainedModel):
    """What a hint adds to the hidden states of a `UnifiedDiffusionModel`.

    Usage:
        controlnet = UnifiedControlNetModel.from_transformer(model, hint_modality="text")
        control = Control(controlnet, controlnet.read(model, Segment("text", hint_ids)), scale=0.8)
        model(canvas_ids, timestep=t, controls=[control]).logits
    """

    config_class = UnifiedControlNetConfig
    main_input_name = "hidden"

    def __init__(self, config: UnifiedControlNetConfig):
        super().__init__(config)
        narrow = config.narrow()
        self.rotary = SectionedRotary(narrow)
        self.hint_projection = (
            None if config.hint_width is None else PreciseLinear(config.hint_width, narrow.hidden_size)
        )
        self.blocks = nn.ModuleList(TransformerLayer(narrow, i) for i in range(narrow.num_hidden_layers))
        self.norms = nn.ModuleList(RMSNorm(narrow.hidden_size, narrow.rms_norm_eps) for _ in self.blocks)
        self.residuals = nn.ModuleList(
            ZeroLinear(narrow.hidden_size, narrow.hidden_size, bias=False) for _ in self.blocks
        )
        self.post_init()

    @classmethod
    def from_transformer(
        cls,
        transformer: UnifiedDiffusionModel,
        hint_modality: str | None = None,
        hint_width: int | None = None,
        hint_source: str | None = None,
        num_blocks: int = 6,
        read_layer: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
        max_hint_tokens: int = 1024,
    ) -> "UnifiedControlNetModel":
        """A fresh ControlNet, whose blocks are narrow copies of layers spread evenly above `read_layer`.

        Args:
            transformer: the base; quantized ones are read as what their codes stand for.
            hint_modality: hints are segments of this modality of the base; "text" where no `hint_width` is given.
            hint_width: hints are continuous tokens of this width instead.
            hint_source: what a request that gives no hint has for one; see `UnifiedControlNetConfig`.
            num_blocks: how many, at most as many as there are layers above.
            read_layer: half of the depth by default.
            num_key_value_heads: of a block, with all the heads that read their keys; a third of the base's by default.
            intermediate_size: of a block; a sixth of the base's by default.
            max_hint_tokens: longer hints are refused.

        Raises:
            ValueError: for sizes out of range.

        Usage: `UnifiedControlNetModel.from_transformer(model, hint_width=2)  # F0 and energy`
        """
        base = base_architecture(transformer.config)
        depth = base["num_hidden_layers"]
        read_layer = depth // 2 if read_layer is None else read_layer
        if not 1 <= num_blocks <= depth - read_layer:
            raise ValueError(
                f"num_blocks must be in [1, {depth - read_layer}] above layer {read_layer}, got {num_blocks}"
            )
        if hint_width is not None and hint_modality is not None:
            raise ValueError(f"give either hint_modality or hint_width, got {hint_modality!r} and {hint_width}")
        if hint_width is None and hint_modality is None:
            hint_modality = "text"
        steps = [read_layer + (depth - read_layer) * i // num_blocks for i in range(num_blocks + 1)]
        keys = max(1, base["num_key_value_heads"] // 3) if num_key_value_heads is None else num_key_value_heads
        config = UnifiedControlNetConfig(
            base=base,
            num_attention_heads=keys * (base["num_attention_heads"] // base["num_key_value_heads"]),
            num_key_value_heads=keys,
            intermediate_size=max(1, base["intermediate_size"] // 6)
            if intermediate_size is None
            else intermediate_size,
            max_hint_tokens=max_hint_tokens,
            read_layer=read_layer,
            copied_layers=steps[:-1],
            write_layers=steps[1:],
            hint_modality=hint_modality,
            hint_width=hint_width,
            hint_source=hint_source,
        )
        config.check_base(transformer.config)
        controlnet = cls(config)
        copy_narrow(transformer.shared_transformer, controlnet)
        return controlnet

    def check_hint(self, hint: Segment, vocab_size: int) -> None:
        """Raise ValueError unless the hint is clean, of the right kind and width, and not too long."""
        config, length = self.config, hint.values.shape[1] if hint.values.ndim > 1 else 0
        if config.hint_modality is not None and hint.modality != config.hint_modality:
            raise ValueError(f"a hint of this ControlNet must be {config.hint_modality!r}, got {hint.modality!r}")
        if not hint.is_context:
            raise ValueError("a hint must be clean (time None), got one with a time")
        if length > config.max_hint_tokens:
            raise ValueError(f"a hint must have at most {config.max_hint_tokens} tokens, got {length}")
        if config.hint_width is not None:
            check_values(hint, {"kind": "continuous", "width": config.hint_width}, vocab_size)
        check_roles(hint)
        check_positions(hint)

    def read(self, transformer: UnifiedDiffusionModel, hint: Segment) -> ContextCache:
        """The keys and values of a hint in each block, with which every pass begins.

        Args:
            transformer: the base.
            hint: clean; token ids int64 (B, n), or continuous values float (B, n, width), finite; `mask` marks padding.
                Positions default to -n..-1, as of text before the text; give those of the canvas where a hint lies
                upon it (edges, curves).

        Raises:
            ValueError: a hint of another modality, width, length or kind, or another base.

        Usage: `cache = controlnet.read(model, Segment("text", ids))`
        """
        self.config.check_base(transformer.config)
        self.check_hint(hint, transformer.config.vocab_size)
        hint = with_positions(hint)
        if self.hint_projection is None:
            hidden, positions, roles = transformer.lower_features(hint, self.config.read_layer)
        else:
            positions, roles, _, _ = layout([hint], [0], ContextCache())
            hidden = self.hint_projection(hint.values.to(self.hint_projection.bias.dtype))
        cache, length = ContextCache(), hidden.shape[1]
        self(hidden, positions, roles, length, cache, keep=True)
        cache.remember(roles, length, torch.zeros(len(hidden), device=hidden.device))
        return cache

    def forward(
        self,
        hidden: Hidden,
        positions: Float[Tensor, "batch length 3"],
        roles: TokenRoles | None,
        num_context: int,
        cache: ContextCache,
        keep: bool = False,
    ) -> dict[int, Hidden]:
        """What each block adds, by the layer of the base before which it goes.

        Args:
            hidden: hidden states of the base before `read_layer`, context first, then canvas.
            positions, roles, num_context: of these tokens, as the trunk has them; ranks go on from `cache`.
            cache: hint and context so far, of the narrow blocks.
            keep: let the context join the cache.

        Usage: `residuals = controlnet(hidden, positions, None, 0, controlnet.read(model, hint))`
        """
        dtype = self.norms[0].weight.dtype
        x = hidden.to(dtype)
        plan = plan_attention(roles, num_context, x.shape[1], cache).additive(attention_dtype(x))
        rotation = self.rotary(positions, x.dtype)
        given = cache.copy()  # as in the trunk: gradient checkpointing runs blocks again after the cache has grown
        new: NewContext | None = {} if keep and num_context else None
        added = {}
        for block, norm, residual, layer in zip(
            self.blocks, self.norms, self.residuals, self.config.write_layers, strict=True
        ):
            x = block(x, rotation, plan, given, new, None)
            added[layer] = residual(norm(x)).to(hidden.dtype)
        for index, (key, value) in (new or {}).items():
            cache.append(index, key, value)
        return added


def with_positions(hint: Segment) -> Segment:
    """A hint at the positions -n..-1 of its n real tokens, unless it has some."""
    if hint.positions is not None:
        return hint
    batch, length = hint.values.shape[:2]
    mask = torch.ones(batch, length, dtype=torch.bool, device=hint.values.device) if hint.mask is None else hint.mask
    positions = (mask.cumsum(dim=1) - 1 - mask.sum(dim=1, keepdim=True)).float()
    return Segment(hint.modality, hint.values, positions=positions, mask=hint.mask)
