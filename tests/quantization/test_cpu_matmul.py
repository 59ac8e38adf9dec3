"""Laws of matrix products with weights in oneDNN's order."""

import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hf_unified_diffusion.quantization import dequantize, quantize
from hf_unified_diffusion.quantization.cpu_matmul import (
    BFloat16Matrix,
    Int8Matrix,
    has_bf16_products,
    int8_rows,
    int8_tokens,
    multiplies_in_int8,
)
from hf_unified_diffusion.quantization.modules import QuantizedLinear, quantize_layer

needs_bf16 = pytest.mark.skipif(not has_bf16_products(), reason="this CPU does not multiply bfloat16 in hardware")
needs_int8 = pytest.mark.skipif(not multiplies_in_int8(torch.float32), reason="this CPU has no sums of byte products")


def matrix(rows: int = 96, columns: int = 256, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference over that of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@needs_bf16
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 33)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_laid_out_matrix_multiplies_as_the_plain_one(shape: tuple[int, ...], bias: bool) -> None:
    weight, offset = matrix().bfloat16(), matrix(1, 96)[0].bfloat16() if bias else None
    x = torch.randn(*shape, 256).bfloat16()
    exact = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    laid_out = BFloat16Matrix.of(weight)
    assert laid_out.nbytes == weight.nbytes
    assert error(laid_out(x, offset), exact) < 2**-8  # the output's own rounding


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_int8_rows_are_exact_where_a_row_has_one_scale(bits: int) -> None:
    packed, scale = quantize(matrix(), bits, group_size=256)
    codes, step = int8_rows(packed, scale, bits)
    assert torch.allclose(codes * step[:, None], dequantize(packed, scale, bits), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [2, 4])
def test_int8_rows_stay_within_half_a_step_where_scales_differ(bits: int) -> None:
    packed, scale = quantize(matrix() * torch.rand(96, 1) * torch.linspace(0.1, 1, 256), bits, group_size=64)
    codes, step = int8_rows(packed, scale, bits)
    off = (codes * step[:, None] - dequantize(packed, scale, bits)).abs()
    assert bool((off <= 0.5001 * step[:, None]).all())
    assert codes.dtype == torch.int8


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), power=st.integers(-20, 20), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_int8_tokens_stay_within_half_a_step(seed: int, power: int, dtype: torch.dtype) -> None:
    x = (matrix(5, 64, seed) * 2.0**power).to(dtype)
    codes, scale = int8_tokens(x)
    restored = (codes.float() - 128) * scale
    assert bool(((restored - x.float()).abs() <= 0.5001 * scale).all())
    assert torch.allclose(scale[:, 0] * 127, x.float().abs().amax(1), rtol=1e-6)


def test_a_token_of_zeros_stays_zero_and_nan_and_infinity_show() -> None:
    x = torch.zeros(3, 8)
    x[1, 0], x[2, 3] = torch.nan, torch.inf
    codes, scale = int8_tokens(x)
    assert bool((codes[0] == 128).all())
    assert scale[0].isfinite() and not scale[1].isfinite() and not scale[2].isfinite()


@needs_int8
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_matrix_multiplies_rounded_tokens(bits: int, dtype: torch.dtype) -> None:
    packed, scale = quantize(matrix(), bits, group_size=64)
    bias, x = matrix(1, 96)[0].to(dtype), torch.randn(2, 33, 256).to(dtype)
    codes, step = int8_rows(packed, scale, bits)
    tokens, size = int8_tokens(x.flatten(0, 1))
    exact = F.linear((tokens.double() - 128) * size, codes.double() * step[:, None], bias.double()).view(2, 33, 96)
    found = Int8Matrix.of(packed, scale, bits)(x, bias)
    assert found.dtype == dtype
    assert error(found, exact) < (1e-6 if dtype == torch.float32 else 2**-8)
    # the stated tolerance for tokens without outliers: 2% of the product's size
    assert error(found, F.linear(x.double(), dequantize(packed, scale, bits).double(), bias.double())) < 0.02


@needs_int8
def test_a_token_does_not_depend_on_its_neighbours() -> None:
    packed, scale = quantize(matrix(), 2)
    multiply = Int8Matrix.of(packed, scale, 2)
    x = torch.randn(40, 256)
    loud = torch.cat([x, 1000 * torch.randn(3, 256)])
    assert torch.equal(multiply(x, None), multiply(loud, None)[:40])
    assert torch.equal(multiply(x[:1], None), multiply(x, None)[:1])


def layer(activation_bits: int, bits: int = 2) -> QuantizedLinear:
    torch.manual_seed(0)
    quantized = quantize_layer(nn.Linear(256, 96), bits, 64, torch.float32).requires_grad_(False)
    quantized.activation_bits = activation_bits
    return quantized


@needs_int8
def test_layers_round_tokens_only_where_they_are_told_and_no_gradient_is_wanted() -> None:
    rounding, exact, x = layer(8), layer(16), torch.randn(4, 256)
    wanted = F.linear(x, exact.dequantized(), exact.bias)
    assert torch.equal(exact(x), wanted)
    assert 0 < error(rounding(x), wanted) < 0.02
    x.requires_grad_()
    assert torch.equal(rounding(x), exact(x))
    rounding(x).sum().backward()
    assert torch.allclose(x.grad, exact.dequantized().sum(0).expand_as(x), atol=1e-5)


@needs_int8
def test_tokens_that_were_written_to_are_rounded_anew() -> None:
    rounding, x = layer(8), torch.randn(4, 256)
    before = rounding(x)
    x.mul_(2)
    assert torch.allclose(rounding(x) - rounding.bias, 2 * (before - rounding.bias), atol=1e-5)


@needs_int8
def test_threads_round_their_own_tokens() -> None:
    rounding = layer(8)
    inputs = [torch.randn(4, 256) for _ in range(4)]
    wanted = [rounding(x) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(200):
            if not torch.equal(rounding(inputs[index]), wanted[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
