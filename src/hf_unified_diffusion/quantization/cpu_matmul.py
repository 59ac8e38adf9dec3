"""Matrix products on a CPU by oneDNN, with weights laid out for it once; `F.linear` lays them out at every call."""

import threading
from dataclasses import dataclass
from weakref import ref

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .integer import dequantize

# int8 codes per scale of the coarser codes, as many as fit: the levels of a row with one scale stay exact
_STEPS = {8: 1, 4: 15, 2: 84}
_MAGNITUDE = {torch.bfloat16: (torch.int16, 0x7FFF), torch.float32: (torch.int32, 0x7FFFFFFF)}
_last = threading.local()


def has_bf16_products() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware through oneDNN."""
    units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return units and torch.backends.mkldnn.is_available()


def multiplies_in_int8(dtype: torch.dtype) -> bool:
    """Whether tokens of that dtype may be rounded, and this CPU sums products of bytes into int32 (VNNI, AMX).

    Without, oneDNN's sums could saturate.
    """
    return dtype in _MAGNITUDE and torch.cpu._is_vnni_supported() and torch.backends.mkldnn.is_available()


@dataclass(frozen=True)
class BFloat16Matrix:
    """A bfloat16 matrix in the order in which oneDNN reads it.

    Usage: `BFloat16Matrix.of(weight)(x, bias)  # F.linear(x, weight, bias)`
    """

    weight: Tensor
    nbytes: int

    @staticmethod
    def of(dense: Float[Tensor, "out in"]) -> "BFloat16Matrix":
        """Lay out a bfloat16 matrix."""
        return BFloat16Matrix(torch.ops.mkldnn._reorder_linear_weight(dense), dense.nbytes)

    def __call__(self, x: Float[Tensor, "*shape in"], bias: Tensor | None) -> Float[Tensor, "*shape out"]:
        """As `F.linear`, for a bfloat16 x that wants no gradient."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")


@dataclass(frozen=True)
class Int8Matrix:
    """An int8 matrix with a scale a row, in oneDNN's order; what it multiplies is rounded to int8 token by token.

    A token's result depends on that token alone. Usage: `Int8Matrix.of(packed, scale, bits=2)(x, bias)`
    """

    codes: Tensor
    scale: Float[Tensor, "out"]
    zero_point: Int[Tensor, "out"]
    nbytes: int

    @staticmethod
    def of(packed: UInt8[Tensor, "out bytes"], scale: Float[Tensor, "out groups"], bits: int) -> "Int8Matrix":
        """Codes and scales of `integer.quantize`, to one scale a row."""
        codes, step = int8_rows(packed, scale, bits)
        laid_out = torch.ops.onednn.qlinear_prepack(codes, None)
        return Int8Matrix(laid_out, step, torch.zeros(len(step), dtype=torch.int64), codes.nbytes)

    def __call__(self, x: Float[Tensor, "*shape in"], bias: Tensor | None) -> Float[Tensor, "*shape out"]:
        """`F.linear` within the rounding of the tokens, in the dtype of x; no gradient."""
        tokens, scale = _shared_int8_tokens(x)
        # float32 out: scaling a rounded bfloat16 would round twice
        product = torch.ops.onednn.qlinear_pointwise(
            tokens, 1.0, 128, self.codes, self.scale, self.zero_point, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = product.mul_(scale) if bias is None else torch.addcmul(bias.float(), product, scale)
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def int8_rows(
    packed: UInt8[Tensor, "out bytes"], scale: Float[Tensor, "out groups"], bits: int
) -> tuple[Int[Tensor, "out in"], Float[Tensor, "out"]]:
    """The matrix as int8 codes and one float32 scale a row: exact with one group a row, else within half a scale."""
    step = scale.float().amax(1, keepdim=True) / _STEPS[bits]
    return dequantize(packed, scale.float() / step, bits).round_().to(torch.int8), step.flatten()


def int8_tokens(x: Float[Tensor, "tokens in"]) -> tuple[UInt8[Tensor, "tokens in"], Float[Tensor, "tokens 1"]]:
    """Each token as codes -127...127, stored with 128 added, and its scale; NaN and infinity reach the scale."""
    # the bits of |x| are in the order of its values, and integers have the faster maximum
    word, bits = _MAGNITUDE[x.dtype]
    largest = (x.view(word) & bits).amax(-1, keepdim=True).view(x.dtype)
    scale = largest.float().clamp_min_(1e-30).div_(127)
    codes = (x * scale.reciprocal()).round_().to(torch.int8)
    return codes.view(torch.uint8).bitwise_xor_(128), scale


def _shared_int8_tokens(x: Float[Tensor, "*shape in"]) -> tuple[Tensor, Tensor]:
    """`int8_tokens`, remembering the last answer of this thread: queries, keys and values read the same tokens."""
    version = None if x.is_inference() else x._version  # tensors of inference mode count no writes
    last = getattr(_last, "answer", None)
    if last is not None and version is not None and last[0]() is x and last[1] == version:
        return last[2]
    rounded = int8_tokens(x.reshape(-1, x.shape[-1]).contiguous())
    _last.answer = ref(x), version, rounded
    return rounded
