"""Integer codes for weight matrices: INT8 per row, INT4 in groups, INT2 through a table. Pure functions.

One layout for all widths: `packed` uint8 "rows bytes" and `scale` bfloat16 "rows groups"; weight = level(code) * scale.
INT8: one group a row, the byte is a two's complement code. INT4: a byte holds columns 2k (low nibble) and 2k + 1, as
code + 8. INT2: a byte is an index into a 256 x 4 table of levels for four consecutive columns; the fixed table makes
it scalar quantization, a learned one vector quantization, with the same dequantizer.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

BITS = (2, 4, 8)
Codes = tuple[UInt8[Tensor, "rows bytes"], Float[Tensor, "rows groups"]]  # packed, scale
SCALE_DTYPE = torch.bfloat16
# lowest and highest level, and the share of the range that the scale search covers
_LEVELS = {8: (-128.0, 127.0), 4: (-8.0, 7.0), 2: (-1.5, 1.5)}
_SEARCH = {8: (0.7, 13), 4: (0.6, 17), 2: (0.3, 22)}
_WORDS = {4: torch.int32, 8: torch.int64, 16: torch.complex128}
_CHUNK_ELEMENTS = 1 << 18  # the search passes over a chunk many times: it must fit in a core's cache
_SMALLEST_SCALE = torch.finfo(SCALE_DTYPE).tiny


def _every_byte(bits: int) -> Float[Tensor, "256 weights"]:
    # the device by name: this module may be imported while a model is built on the meta device
    codes = torch.arange(256, device="cpu").unsqueeze(1) >> torch.arange(0, 8, bits, device="cpu") & (1 << bits) - 1
    return codes.float() + _LEVELS[bits][0]


# levels of the 8 / bits codes in a byte, lowest bits first: -8 ... 7 for INT4; -1.5, -0.5, 0.5, 1.5 for INT2
FIXED_TABLES = {bits: _every_byte(bits) for bits in (4, 2)}


def quantize(
    weight: Float[Tensor, "rows columns"], bits: int, group_size: int = 64, search: bool = True
) -> tuple[UInt8[Tensor, "rows bytes"], Float[Tensor, "rows groups"]]:
    """Codes and scales of a matrix, each scale chosen to minimize its group's squared error (bits: 2, 4 or 8).

    `search=False` takes the scale at which the largest weight of a group is the highest level: many times faster, and
    of larger error.

    Bits per weight: `bits + 16 / group_size` for 2 and 4, `8 + 16 / columns` for 8, which has one group a row.
    Weights that are not clipped are restored within half a step (half a scale).

    Raises:
        ValueError: not a finite floating-point matrix, or a group size that does not divide the columns.

    Usage: `packed, scale = quantize(linear.weight, bits=4); weight = dequantize(packed, scale, bits=4)`
    """
    size = _checked_group_size(weight, bits, group_size)
    rows, columns = weight.shape
    packed = torch.empty(rows, columns * bits // 8, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(rows, columns // size, dtype=SCALE_DTYPE, device=weight.device)
    step = max(1, _CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        chunk = slice(start, start + step)
        groups = weight[chunk].detach().float().reshape(-1, columns // size, size)
        widest = groups.abs().amax(-1, keepdim=True)  # NaN and infinity reach it
        if not widest.isfinite().all():
            raise ValueError(f"weights must be finite in float32, got NaN or infinity in rows {start}..{start + step}")
        widest /= _LEVELS[bits][1]
        best = _search_scale(groups, widest, bits) if search else storable_scale(widest)
        scale[chunk] = best.squeeze(-1)
        packed[chunk] = pack_levels(nearest_levels(groups, best, bits).reshape(-1, columns), bits)
    return packed, scale


def dequantize(
    packed: UInt8[Tensor, "rows bytes"],
    scale: Float[Tensor, "rows groups"],
    bits: int,
    dtype: torch.dtype = torch.float32,
    table: Float[Tensor, "256 weights"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """Weights of codes and scales, rounded once to `dtype`; `table` replaces the fixed levels of INT4 or INT2."""
    # level times bfloat16 scale is exact in float32; bfloat16 rounds the same product once
    compute = dtype if dtype == torch.bfloat16 else torch.float32
    groups = levels_of(packed, bits, compute, table).view(*scale.shape, -1)
    return groups.mul_(scale.to(compute).unsqueeze(-1)).view(packed.shape[0], -1).to(dtype)


def check_scales(name: str, scale: Tensor) -> None:
    """Raise ValueError unless every scale is a finite, positive, normal number."""
    smallest = torch.finfo(scale.dtype).tiny if scale.is_floating_point() else 1
    if not bool(((scale >= smallest) & scale.isfinite()).all()):
        raise ValueError(f"scales of {name!r} must be finite, positive and normal numbers")


def _checked_group_size(weight: Tensor, bits: int, group_size: int) -> int:
    if bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, got {bits!r}")
    if weight.dim() != 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise ValueError(f"weight must be a non-empty floating-point matrix, got {weight.dtype} {tuple(weight.shape)}")
    columns = weight.shape[1]
    if bits == 8:
        return columns
    per_byte = 8 // bits
    if group_size < per_byte or group_size % per_byte or columns % group_size:
        raise ValueError(
            f"group_size must be a multiple of {per_byte} that divides the {columns} columns, got {group_size!r}"
        )
    return group_size


def nearest_levels(groups: Tensor, scale: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    """Nearest levels of groups / scale: integers, or half-integers for INT2."""
    low, high = _LEVELS[bits]
    levels = torch.div(groups, scale, out=out)
    return (levels.floor_().add_(0.5) if bits == 2 else levels.round_()).clamp_(low, high)


def _search_scale(
    groups: Float[Tensor, "rows groups size"], widest: Float[Tensor, "rows groups 1"], bits: int
) -> Float[Tensor, "rows groups 1"]:
    """Scale of least squared error: a grid below the one of the largest weight, then one least-squares step."""
    lowest, count = _SEARCH[bits]
    best, best_error = storable_scale(widest), torch.full_like(widest, torch.inf)
    levels, missed = torch.empty_like(groups), torch.empty_like(groups)  # written again and again: they stay in cache

    def keep_better(candidate: Tensor) -> None:
        nearest_levels(groups, candidate, bits, out=levels)
        torch.addcmul(groups, levels, candidate, value=-1, out=missed)
        error = torch.linalg.vector_norm(missed, dim=-1, keepdim=True)
        better = error < best_error
        best.copy_(torch.where(better, candidate, best))
        best_error.copy_(torch.where(better, error, best_error))

    for share in torch.linspace(1.0, lowest, count).tolist():
        keep_better(storable_scale(widest * share))
    nearest_levels(groups, best, bits, out=levels)
    power = levels.square().sum(-1, keepdim=True)
    fitted = (levels * groups).sum(-1, keepdim=True) / power.clamp_min_(1e-12)
    keep_better(storable_scale(fitted))
    return best


def storable_scale(scale: Tensor) -> Tensor:
    """The nearest scale that the file can hold, as float32."""
    return scale.clamp_min(_SMALLEST_SCALE).to(SCALE_DTYPE).float()


def pack_levels(levels: Float[Tensor, "rows columns"], bits: int) -> UInt8[Tensor, "rows bytes"]:
    """Levels to bytes; overwrites them. Codes of a byte are shifted together within a word of as many bytes."""
    if bits == 8:
        return levels.to(torch.int8).view(torch.uint8)
    # by way of int8, whose conversion is five times as fast as that of uint8
    codes = levels.sub_(_LEVELS[bits][0]).to(torch.int8, memory_format=torch.contiguous_format)
    if bits == 4:
        pairs = codes.view(torch.int16)
        return (pairs >> 4).bitwise_or_(pairs).to(torch.uint8)
    fours = codes.view(torch.int32)
    twos = (fours >> 6).bitwise_or_(fours)
    return (twos >> 12).bitwise_or_(twos).to(torch.uint8)


def levels_of(
    packed: UInt8[Tensor, "rows bytes"], bits: int, dtype: torch.dtype = torch.float32, table: Tensor | None = None
) -> Float[Tensor, "..."]:
    """The levels that codes stand for, before their scales; for INT4 and INT2 as a flat tensor."""
    return packed.view(torch.int8).to(dtype) if bits == 8 else _look_up(packed, bits, dtype, table)


def _look_up(packed: Tensor, bits: int, dtype: torch.dtype, table: Tensor | None) -> Tensor:
    entries = (FIXED_TABLES[bits] if table is None else table).to(packed.device, dtype)
    # one machine word an entry: gathering words is 3 to 5 times faster than gathering rows or shifting bits
    word = _WORDS[entries.shape[1] * entries.element_size()]
    return torch.index_select(entries.view(word).view(256), 0, packed.view(-1).int()).view(dtype)
