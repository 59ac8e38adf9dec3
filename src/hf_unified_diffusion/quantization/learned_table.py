"""INT2 through a table that is learned for its matrix: vector quantization of four weights a byte."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .integer import FIXED_TABLES, dequantize, quantize, storable_scale

_CHUNK_VECTORS = 1 << 15  # times 256 distances of float32


def learn_table(
    weight: Float[Tensor, "rows columns"], group_size: int = 64, num_rounds: int = 8
) -> tuple[UInt8[Tensor, "rows bytes"], Float[Tensor, "rows groups"], Float[Tensor, "256 4"]]:
    """INT2 codes, scales and a table of least squared error for one matrix (k-means, Lloyd 1982).

    Starts from the fixed table and its codes, and in each round assigns every four weights to the nearest entry, moves
    the entries to the mean of what they stand for, and fits the scales. No step raises the error beyond the rounding of
    scales, and the best round is given. Bits per weight: those of INT2 and 16,384 bits for the table.

    Raises ValueError for what `quantize` refuses, and for less than one round.

    Usage: `packed, scale, table = learn_table(linear.weight); weight = dequantize(packed, scale, 2, table=table)`
    """
    if num_rounds < 1:
        raise ValueError(f"num_rounds must be at least 1, got {num_rounds}")
    packed, scale = quantize(weight, 2, group_size)
    weight, table = weight.detach().float(), FIXED_TABLES[2].to(weight.device).clone()
    best, best_error = (packed, scale, table), squared_error(weight, packed, scale, table)
    for _ in range(num_rounds):
        fours = (weight.unflatten(1, (-1, group_size)) / scale.float()[..., None]).view(-1, 4)
        power = scale.float().square().repeat_interleave(group_size // 4, dim=1).view(-1, 1)
        codes = torch.cat([nearest(part, table) for part in fours.split(_CHUNK_VECTORS)])
        table = weighted_means(fours, power, codes, table)
        packed, scale = codes.to(torch.uint8).view(packed.shape), fitted_scale(weight, table[codes], scale)
        error = squared_error(weight, packed, scale, table)
        if error < best_error:
            best, best_error = (packed, scale, table), error
    return best


def nearest(fours: Float[Tensor, "some 4"], table: Float[Tensor, "256 4"]) -> Tensor:
    """The entry at least squared distance, int64 (some,)."""
    return (table.square().sum(dim=1) - 2 * fours @ table.T).argmin(dim=1)


def weighted_means(fours: Tensor, power: Float[Tensor, "some 1"], codes: Tensor, table: Tensor) -> Tensor:
    """The mean of the vectors of each entry, by the squares of their scales; entries of none stay."""
    total = torch.zeros_like(table).index_add_(0, codes, fours * power)
    weight = torch.zeros_like(table[:, :1]).index_add_(0, codes, power)
    return torch.where(weight > 0, total / weight.clamp_min(torch.finfo(weight.dtype).tiny), table)


def fitted_scale(weight: Tensor, levels: Float[Tensor, "some 4"], scale: Tensor) -> Tensor:
    """Scales of least squared error for given levels; those that would not be positive stay."""
    levels, groups = levels.view(*scale.shape, -1), weight.view(*scale.shape, -1)
    fitted = (levels * groups).sum(-1) / levels.square().sum(-1).clamp_min(1e-12)
    return torch.where(fitted > 0, storable_scale(fitted), scale.float()).to(scale.dtype)


def squared_error(weight: Tensor, packed: Tensor, scale: Tensor, table: Tensor) -> float:
    """The sum of squared differences after a round trip."""
    return (dequantize(packed, scale, 2, table=table) - weight).square().sum().item()
