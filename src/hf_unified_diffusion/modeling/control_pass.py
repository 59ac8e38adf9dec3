"""ControlNets beside the trunk: each reads its hidden states at one depth, and adds to them further up."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..contracts import Segment
from .attention_rule import EVERYTHING, ContextCache, TokenRoles
from .configuration_unified_diffusion import UnifiedDiffusionConfig

if TYPE_CHECKING:
    from .controlnet import UnifiedControlNetModel


@dataclass(frozen=True)
class Control:
    """A ControlNet at work: its hint, what it has seen of the context, its weight and its time range.

    A token at time t gets the residual where start <= 1 - t < end, times `scale`; with end=1 clean tokens (t=0), the
    context and so the causal path, get it too.

    Attributes:
        controlnet: the network.
        cache: hint and context, of its blocks (`UnifiedControlNetModel.read`); grows beside the base's cache.
        scale: the weight of its residuals, any finite number.
        start, end: the range, in shares of the noise removed, 0 <= start < end <= 1.

    Usage: `Control(controlnet, controlnet.read(model, hint), scale=0.8, end=0.5)`
    """

    controlnet: "UnifiedControlNetModel"
    cache: ContextCache
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def weights(self, time: Float[Tensor, "batch length"]) -> Float[Tensor, "batch length"]:
        """The weight of each token's residual, by its time (0: clean)."""
        done = 1 - time
        active = (done >= self.start) & ((done < self.end) | (self.end == 1))
        return active * self.scale

    def select(self, rows: Int[Tensor, "rows"]) -> "Control":
        """The control of the given rows of the batch, in that order; rows may repeat."""
        return replace(self, cache=self.cache.select(rows))


def check_controls(controls: Sequence[Control], config: UnifiedDiffusionConfig, batch: int) -> None:
    """Raise ValueError for a ControlNet of another base, hints of another batch, or reading what another one wrote."""
    for control in controls:
        control.controlnet.config.check_base(config)
        rows = control.cache.keys[0].shape[0]
        if rows != batch:
            raise ValueError(f"a hint must have the batch's {batch} rows, got {rows}")
    highest = max(control.controlnet.config.read_layer for control in controls)
    lowest = min(min(control.controlnet.config.write_layers) for control in controls)
    if highest > lowest:
        raise ValueError(
            f"ControlNets must all read at or below the layer where the first of them writes, {lowest}, got {highest}"
        )


class ControlPass:
    """ControlNets in one pass of the trunk, which calls this before each layer and after the last.

    Args:
        segments: in the trunk's order, context first.
        positions, roles, num_context: of their tokens.
        num_cached: context tokens that the base has in its cache.
        keep: let the context join the caches of the ControlNets.
    """

    def __init__(
        self,
        controls: Sequence[Control],
        segments: Sequence[Segment],
        positions: Float[Tensor, "batch length 3"],
        roles: TokenRoles | None,
        num_context: int,
        num_cached: int,
        keep: bool,
    ):
        self.controls, self.positions, self.keep = controls, positions, keep
        self.roles, self.num_context, self.num_cached = roles, num_context, num_cached
        self.times = torch.cat([times_of(segment) for segment in segments], dim=1)
        self.pending: dict[int, Tensor] = {}

    def __call__(self, layer: int, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The hidden states as layer `layer` shall see them."""
        for control in self.controls:
            if control.controlnet.config.read_layer == layer:
                self._read(control, x)
        return x + self.pending.pop(layer) if layer in self.pending else x

    def _read(self, control: Control, x: Tensor) -> None:
        roles = self._roles_after(control.cache)
        added = control.controlnet(x, self.positions, roles, self.num_context, control.cache, self.keep)
        if self.keep and self.num_context:
            control.cache.remember(roles, self.num_context, self.positions[:, self.num_context - 1, 0] + 1)
        weights = control.weights(self.times).to(x.dtype)[..., None]
        for layer, residual in added.items():
            weighted = weights * residual
            self.pending[layer] = self.pending[layer] + weighted if layer in self.pending else weighted

    def _roles_after(self, cache: ContextCache) -> TokenRoles | None:
        """The roles of the tokens behind hint and context: ranks count the hint too."""
        roles, shift = self.roles, len(cache) - self.num_cached
        if roles is not None:
            return TokenRoles(roles.document, roles.canvas, roles.rank + shift, roles.reach + shift)
        if cache.document is None:
            return None
        batch, length = self.positions.shape[:2]
        index = torch.arange(length, device=self.positions.device).expand(batch, length)
        is_canvas = (index >= self.num_context).long()
        rank = len(cache) + index
        return TokenRoles(torch.zeros_like(rank), is_canvas, rank, torch.where(is_canvas > 0, EVERYTHING, rank + 1))


def times_of(segment: Segment) -> Float[Tensor, "batch length"]:
    """Each token's time, 0 where it is clean."""
    shape = segment.values.shape[:2]
    if segment.time is None:
        return torch.zeros(shape, device=segment.values.device)
    return segment.time if segment.time.ndim == 2 else segment.time[:, None].expand(shape)
