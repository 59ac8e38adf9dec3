"""Calibration of a whole network: its blocks are rounded one after the other, on what sample inputs make them see.

Each block sees the inputs that the rounded blocks before it give, and is asked for the outputs that the dense network
would have: it makes up for part of their error (as arXiv:2504.02692 does within GPTQ).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from .calibrated_rounding import damped, quantize_calibrated
from .configuration_arrowquant import ArrowQuantConfig, longest_module_list
from .integer import Codes, dequantize


@dataclass(frozen=True)
class _Call:
    """How a block was called, its first argument apart."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Inputs:
    """What enters layers that read the same tensor: X^T X of the rounded network, X^T (X_dense - X) beside it."""

    def __init__(self, columns: int, device: torch.device):
        self.moments = torch.zeros(columns, columns, device=device)
        self.drift = torch.zeros(columns, columns, device=device)

    def add(self, x: Tensor, x_dense: Tensor) -> None:
        x, x_dense = (rows.flatten(0, -2).float() for rows in (x, x_dense))
        with torch.autocast(x.device.type, enabled=False):  # bf16 would lose the weak directions
            self.moments += x.T @ x
            self.drift += x.T @ (x_dense - x)

    def target(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """The matrix that on X comes closest to what `weight` gives on X_dense."""
        metric, mean = damped(self.moments, len(self.moments)), self.moments.diagonal().mean()
        if mean == 0:
            return weight.float()
        with torch.autocast(weight.device.type, enabled=False):
            return weight.float() + torch.linalg.solve(metric, self.drift / mean @ weight.float().T).T


@torch.no_grad()
def calibrated_codes(
    model: nn.Module, config: ArrowQuantConfig, batches: Iterable[Mapping[str, Any]], sweeps: int = 3
) -> dict[str, Codes]:
    """Codes and scales, by module name, of the layers in the blocks of a dense model; to `quantize_model(codes=...)`.

    Layers that no batch reaches are left out, and so are those outside the model's longest list of modules. It runs
    under the autocast that it is called in, and holds two hidden states for each batch.

    Args:
        batches: keyword arguments of the model's forward: a few dozen rows of *training* data, of every kind of input
            that the model will meet.

    Raises:
        ValueError: the model has no list of blocks, its blocks do not take and return hidden states first, or no batch.

    Usage: `codes = calibrated_codes(model, ArrowQuantConfig(bits=4), [{"input_ids": ids}])`
    """
    was_training = model.training
    model.eval()
    try:
        name, blocks = longest_module_list(model)
        hidden, calls = _recorded(model, blocks, batches)
        plan = config.bits_of_layers(model)
        codes: dict[str, Codes] = {}
        dense = [states.clone() for states in hidden]
        for index, block in enumerate(tqdm(blocks, desc="calibrate", unit="block")):
            prefix = f"{name}.{index}."
            bits = {layer.removeprefix(prefix): count for layer, count in plan.items() if layer.startswith(prefix)}
            found = _rounded_block(block, bits, config.group_size, hidden, dense, calls[index], sweeps)
            codes |= {prefix + layer: found_codes for layer, found_codes in found.items()}
        return codes
    finally:
        model.train(was_training)


def _recorded(
    model: nn.Module, blocks: nn.ModuleList, batches: Iterable[Mapping[str, Any]]
) -> tuple[list[Tensor], list[list[_Call]]]:
    """The hidden states that enter the first block, one for each batch, and by block and batch how it was called."""
    hidden: list[Tensor] = []
    calls: list[list[_Call]] = [[] for _ in blocks]

    def record(index: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args or not isinstance(args[0], Tensor):
                raise ValueError(f"blocks must take hidden states first, got {type(block).__name__} without them")
            if index == 0:
                hidden.append(args[0])
            calls[index].append(_Call(args[1:], kwargs))

        return hook

    hooks = [block.register_forward_pre_hook(record(i), with_kwargs=True) for i, block in enumerate(blocks)]
    try:
        for batch in batches:
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    counts = sorted({len(of_block) for of_block in calls})
    if not hidden or counts != [len(hidden)]:
        raise ValueError(f"calibration needs batches that each pass every block once, got {counts} passes")
    return hidden, calls


def _rounded_block(
    block: nn.Module,
    bits: Mapping[str, int],
    group_size: int,
    hidden: list[Tensor],
    dense: list[Tensor],
    calls: list[_Call],
    sweeps: int,
) -> dict[str, Codes]:
    """Codes of a block's layers; `hidden` and `dense` move on to what enters the next block."""
    layers = {name: block.get_submodule(name) for name in bits}
    inputs = _gathered(block, layers, hidden, dense, calls)
    codes, weights = {}, {name: layers[name].weight.data for name in inputs}
    try:
        for name, seen in inputs.items():
            target = seen.target(weights[name])
            codes[name] = quantize_calibrated(target, seen.moments, bits[name], group_size, sweeps)
            layers[name].weight.data = dequantize(*codes[name], bits[name], weights[name].dtype)
        for i, call in enumerate(calls):
            hidden[i] = _output(block, hidden[i], call)
    finally:
        for name, weight in weights.items():
            layers[name].weight.data = weight
    return codes


def _gathered(
    block: nn.Module, layers: Mapping[str, nn.Module], hidden: list[Tensor], dense: list[Tensor], calls: list[_Call]
) -> dict[str, _Inputs]:
    """Statistics by layer, shared by layers that read the same tensor; `dense` moves on."""
    found: dict[str, _Inputs] = {}
    for i, call in enumerate(calls):
        _, seen = _traced(block, layers, hidden[i], call)
        dense[i], wanted = _traced(block, layers, dense[i], call)
        added: dict[int, _Inputs] = {}
        for name, x in seen.items():
            if id(x) not in added:
                added[id(x)] = found.setdefault(name, _Inputs(x.shape[-1], x.device))
                added[id(x)].add(x, wanted[name])
            found[name] = added[id(x)]
    return found


def _traced(
    block: nn.Module, layers: Mapping[str, nn.Module], hidden: Tensor, call: _Call
) -> tuple[Tensor, dict[str, Tensor]]:
    """The block's output, and what entered each of the layers."""
    seen: dict[str, Tensor] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda layer, args: seen.update({name: args[0]})

    hooks = [layer.register_forward_pre_hook(record(name)) for name, layer in layers.items()]
    try:
        return _output(block, hidden, call), seen
    finally:
        for hook in hooks:
            hook.remove()


def _output(block: nn.Module, hidden: Tensor, call: _Call) -> Tensor:
    output = block(hidden, *call.args, **call.kwargs)
    if not isinstance(output, Tensor):
        raise ValueError(f"blocks must return hidden states, got {type(output).__name__}")
    return output
