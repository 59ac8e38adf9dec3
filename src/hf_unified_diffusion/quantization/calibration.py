"""Calibration of a whole network: each linear layer is rounded by the second moments of what enters it.

The moments are those of the dense network. Following the rounded one layer after layer, with targets that make up for
the drift (arXiv:2504.02692), was tried on three layers and 16 rows: it was worse on held-out rows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from .calibrated_rounding import SWEEPS, quantize_calibrated
from .configuration_arrowquant import ArrowQuantConfig
from .integer import Codes


@torch.no_grad()
def calibrated_codes(
    model: nn.Module, config: ArrowQuantConfig, batches: Iterable[Mapping[str, Any]], sweeps: int = SWEEPS
) -> dict[str, Codes]:
    """Codes and scales, by module name, of the linear layers of a dense model; to `quantize_model(codes=...)`.

    Layers that no batch reaches are left out. The network runs under the autocast that this is called in.

    Args:
        batches: keyword arguments of the model's forward: a few dozen rows of *training* data, of every kind of input
            that the model will meet.

    Raises:
        ValueError: no batch, or none that reaches a layer to quantize.

    Usage: `codes = calibrated_codes(model, ArrowQuantConfig(bits=4), [{"input_ids": ids}])`
    """
    layers = {name: (model.get_submodule(name), bits) for name, bits in config.bits_of_layers(model).items()}
    linear = {name: layer for name, (layer, _) in layers.items() if isinstance(layer, nn.Linear)}
    moments = input_moments(model, linear, batches)
    if not moments:
        raise ValueError("calibration needs batches that reach layers to quantize, got none")
    codes = {}
    for name in tqdm(list(moments), desc="calibrate", unit="layer"):
        weight, bits = linear[name].weight, layers[name][1]
        codes[name] = quantize_calibrated(weight, moments.pop(name), bits, config.group_size, sweeps)
    return codes


@torch.no_grad()
def input_moments(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Float[Tensor, "columns columns"]]:
    """X^T X in float32 of what enters each layer, for those that a batch reaches; dropout is off meanwhile."""
    moments: dict[str, Tensor] = {}
    last: list[Tensor] = []  # an input and its product: layers that read the same tensor follow each other

    def record(name: str, x: Tensor) -> None:
        if not last or x is not last[0]:
            rows = x.flatten(0, -2).float()
            with torch.autocast(x.device.type, enabled=False):  # bf16 would lose the weak directions
                last[:] = [x, rows.T @ rows]
        moments[name] = moments[name].add_(last[1]) if name in moments else last[1].clone()

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: record(name, args[0]))
        for name, layer in layers.items()
    ]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            model(**batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return moments
