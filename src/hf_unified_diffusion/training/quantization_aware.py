"""Training against the rounding that a checkpoint will ship with.

The network computes with rounded weights, the optimizer moves the dense ones (straight-through, arXiv:1308.3432).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..quantization import ArrowQuantConfig, QuantizedWeight, dequantize, nearest_levels, quantize
from ..quantization.integer import Codes, pack_levels

WITHIN_CELL = 0.45  # steps from a level that surely round to it


class RoundedWeights:
    """Swaps the dense INT4 and INT2 layers of a model for their rounded values, for the passes of one step.

    Scales are those of `quantize` (least squared error), searched anew every `refresh_every` steps; between searches
    only the rounding is repeated. INT8 layers are left alone: their rounding is below the noise of a step. Layers that
    `codes` names start where they round to these (see `calibrated_codes`) and keep their scales throughout, and so do
    layers that `scales` names (see `scales_of`), whose weights are left where they are.

    Raises ValueError for `scales` of other layers, or of other groups.

    Usage:
        rounded = RoundedWeights(model, ArrowQuantConfig(bits=4))
        with rounded.in_place():
            loss = objective(parts)["loss"]
            loss.backward()
        optimizer.step()  # moves the dense weights
    """

    def __init__(
        self,
        model: nn.Module,
        config: ArrowQuantConfig,
        refresh_every: int = 50,
        codes: Mapping[str, Codes] | None = None,
        scales: Mapping[str, Tensor] | None = None,
    ):
        plan = config.bits_of_layers(model)
        modules = dict(model.named_modules())
        self.names = [name for name, bits in plan.items() if bits < 8]
        self.layers = [modules[name] for name in self.names]
        self.given = dict(scales or {})
        wrong = sorted(set(self.given) - set(self.names))
        if wrong:
            raise ValueError(
                f"scales must be of layers of {config.bits} bits, got some of {wrong[:3]} ({len(wrong)} layers)"
            )
        for name, scale in self.given.items():
            rows, columns = modules[name].weight.shape
            if scale.shape != (rows, columns // config.group_size):
                raise ValueError(
                    f"scales of {name} must be one for {config.group_size} of {rows} x {columns} weights, "
                    f"got {tuple(scale.shape)}"
                )
        for name in self.names:
            if codes is not None and name in codes:
                modules[name].weight.data = within_cells(modules[name].weight.data, codes[name], config.bits)
                self.given[name] = codes[name][1]
        self.bits, self.group_size, self.refresh_every = config.bits, config.group_size, refresh_every
        self.scales: list[Tensor] = []
        self.passes = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to round as the unbroken one does."""
        return {"passes": self.passes, "scales": self.scales}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.passes = state["passes"]
        self.scales = [s.to(layer.weight.device) for s, layer in zip(state["scales"], self.layers, strict=True)]

    def chosen_scales(self) -> list[Tensor]:
        """Of each layer the given scales, or those that suit its weights now."""
        return [
            self.given[name].to(layer.weight.device)
            if name in self.given
            else quantize(layer.weight.detach(), self.bits, self.group_size)[1]
            for name, layer in zip(self.names, self.layers, strict=True)
        ]

    def codes(self) -> dict[str, Codes]:
        """Codes of the weights as they are now, with the scales of the last pass, by module name.

        They go to `quantize_model(codes=...)`: what is shipped is what was trained.
        """
        found = {}
        scales = self.scales or self.chosen_scales()
        for name, layer, scale in zip(self.names, self.layers, scales, strict=True):
            weight = layer.weight.detach().float()
            levels = nearest_levels(weight.view(*scale.shape, -1), scale.float()[..., None], self.bits)
            found[name] = pack_levels(levels.view_as(weight), self.bits), scale
        return found

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Rounded values inside, the dense ones again afterwards, whatever happens."""
        if self.passes % self.refresh_every == 0:
            self.scales = self.chosen_scales()
        self.passes += 1
        dense = [layer.weight.data for layer in self.layers]
        try:
            for layer, scale in zip(self.layers, self.scales, strict=True):
                layer.weight.data = rounded(layer.weight.data, scale.float(), self.bits)
            yield
        finally:
            for layer, weight in zip(self.layers, dense, strict=True):
                layer.weight.data = weight


def scales_of(model: nn.Module) -> dict[str, Tensor]:
    """Scales of the INT4 and INT2 layers of a quantized network, by module name; to `RoundedWeights(scales=...)`."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedWeight)}
    return {name: layer.weight_scale.clone() for name, layer in layers.items() if layer.bits < 8}


@torch.no_grad()
def spread_over_cells(model: nn.Module, scales: Mapping[str, Tensor], seed: int) -> None:
    """Move the dense weights of the layers that `scales` names to random places around where they are, in place.

    The weights of a network that was rounded before lie in the middle of their cells, and what training adds to one is
    a twentieth of a step: rounding takes all of it back. Spread evenly over nearly the whole cell they round to the
    levels they came from until training moves them: then as many cross a border as the movement asks for (dither).

    Usage: `spread_over_cells(model, scales_of(checkpoint), seed=0)`
    """
    generator = torch.Generator().manual_seed(seed)
    for name, scale in scales.items():
        weight = model.get_submodule(name).weight
        offsets = 2 * torch.rand(weight.shape, generator=generator) - 1
        weight += (offsets * reach_of(scale, weight)).to(weight)


def reach_of(scale: Tensor, weight: Tensor) -> Tensor:
    """How far each weight may be from the level that it rounds to: (rows, groups) of scales to (rows, columns)."""
    return WITHIN_CELL * scale.float().repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)


def within_cells(weight: Tensor, codes: Codes, bits: int) -> Tensor:
    """The weights moved just as far as it takes to round to the codes.

    Not to the levels themselves: where all weights lie in the middle of their cells no small step changes the loss,
    and they drift without feedback until many flip at once.
    """
    restored = dequantize(*codes, bits)
    reach = reach_of(codes[1], weight)
    return (restored + torch.clamp(weight.float() - restored, -reach, reach)).to(weight.dtype)


def rounded(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest levels times their scales: (rows, columns) by (rows, groups)."""
    groups, scale = weight.view(*scale.shape, -1), scale[..., None]
    return nearest_levels(groups, scale, bits).mul_(scale).view_as(weight)
