"""Laws of the integer codes: nearest levels, scales no worse than the plain ones, exact arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_unified_diffusion.quantization import dequantize, quantize
from hf_unified_diffusion.quantization.integer import FIXED_TABLES, check_scales

LEVELS = {8: torch.arange(-128.0, 128), 4: torch.arange(-8.0, 8), 2: torch.tensor([-1.5, -0.5, 0.5, 1.5])}
SCALE_ROUNDING = 2**-8  # bfloat16 keeps 8 significant bits


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Normal, heavy-tailed and constant matrices, of magnitudes from 1e-30 to 1e30."""
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    weight = torch.randn(rows, 16 * groups, generator=generator) ** draw(st.sampled_from([0, 1, 3]))
    return weight * 10.0 ** draw(st.integers(-30, 30)) * draw(st.sampled_from([0.0, 1.0, -1.0]))


def spread(scale: Tensor, columns: int) -> Tensor:
    """The scale of each weight."""
    return scale.float().repeat_interleave(columns // scale.shape[1], dim=1)


@pytest.mark.parametrize("bits", [2, 4, 8])
@settings(max_examples=60, deadline=None)
@given(weight=matrices())
def test_every_weight_takes_its_nearest_level(bits: int, weight: Tensor) -> None:
    packed, scale = quantize(weight, bits, group_size=16)
    restored = dequantize(packed, scale, bits)
    step = spread(scale, weight.shape[1])
    distances = (weight.unsqueeze(-1) - LEVELS[bits] * step.unsqueeze(-1)).abs()
    assert torch.all((weight - restored).abs() <= distances.amin(-1) * (1 + 1e-5))
    inside = (weight >= LEVELS[bits][0] * step) & (weight <= LEVELS[bits][-1] * step)
    assert torch.all((weight - restored).abs()[inside] <= step[inside] / 2 * (1 + 1e-5))


@pytest.mark.parametrize("bits", [2, 4, 8])
@settings(max_examples=60, deadline=None)
@given(weight=matrices())
def test_the_scale_found_is_at_least_as_good_as_the_widest(bits: int, weight: Tensor) -> None:
    weight = weight / weight.abs().amax().clamp_min(1e-38)  # squares of the errors must not overflow
    packed, scale = quantize(weight, bits, group_size=16)
    groups = weight.view(weight.shape[0], scale.shape[1], -1)
    widest = (groups.abs().amax(-1, keepdim=True) / LEVELS[bits][-1]).clamp_min(1.2e-38).bfloat16().float()
    plain = (groups.unsqueeze(-1) - LEVELS[bits] * widest.unsqueeze(-1)).square().amin(-1).sum(-1)
    found = (groups - dequantize(packed, scale, bits).view_as(groups)).square().sum(-1)
    assert torch.all(found <= plain * (1 + 1e-4) + 1e-12)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_powers_of_two_scale_the_scales_alone(bits: int) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    packed, scale = quantize(weight, bits)
    scaled_packed, scaled_scale = quantize(weight * 1024, bits)
    assert torch.equal(packed, scaled_packed)
    assert torch.equal(scale.float() * 1024, scaled_scale.float())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_are_quantized_independently(bits: int) -> None:
    weight = torch.randn(300, 1024, generator=torch.Generator().manual_seed(0))  # several chunks of the search
    packed, scale = quantize(weight, bits)
    for rows in (slice(0, 1), slice(100, 177), slice(299, 300)):
        alone, alone_scale = quantize(weight[rows], bits)
        assert torch.equal(alone, packed[rows])
        assert torch.equal(alone_scale, scale[rows])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_the_float32_weights_rounded_once(bits: int, dtype: torch.dtype) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    packed, scale = quantize(weight, bits)
    assert torch.equal(dequantize(packed, scale, bits, dtype), dequantize(packed, scale, bits).to(dtype))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_sizes_are_the_promised_bits_per_weight(bits: int) -> None:
    packed, scale = quantize(torch.randn(64, 1024), bits)
    bits_per_weight = 8 * (packed.nbytes + scale.nbytes) / (64 * 1024)
    assert bits_per_weight == bits + (16 / 1024 if bits == 8 else 16 / 64)
    assert scale.dtype == torch.bfloat16


def test_more_bits_leave_less_error_on_normal_weights() -> None:
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    errors = {bits: (dequantize(*quantize(weight, bits), bits) - weight).square().mean().item() for bits in (8, 4, 2)}
    # rate-distortion theory: no code of R bits errs less than 4^-R on unit normals; ours stay within a few times
    for bits, error in errors.items():
        assert 4.0**-bits < error < 8 * 4.0**-bits


def test_zero_matrices_stay_zero_where_zero_is_a_level() -> None:
    for bits in (4, 8):
        assert dequantize(*quantize(torch.zeros(2, 64), bits), bits).count_nonzero() == 0
    assert dequantize(*quantize(torch.zeros(2, 64), 2), 2).abs().max() < 1e-37


def test_a_given_table_replaces_the_levels() -> None:
    packed = torch.arange(256, dtype=torch.uint8).view(4, 64)
    scale = torch.full((4, 4), 2.0, dtype=torch.bfloat16)
    table = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dequantize(packed, scale, 2, table=table), 2 * table.view(4, 256))
    assert torch.equal(dequantize(packed, scale, 2), 2 * FIXED_TABLES[2].view(4, 256))


@pytest.mark.parametrize(
    ("weight", "bits", "group_size", "rule"),
    [
        (torch.zeros(2, 64), 3, 64, "bits"),
        (torch.zeros(2, 64), "4", 64, "bits"),
        (torch.zeros(64), 4, 64, "matrix"),
        (torch.zeros(()), 8, 64, "matrix"),
        (torch.zeros(0, 64), 4, 64, "matrix"),
        (torch.zeros(2, 2, 64), 4, 64, "matrix"),
        (torch.zeros(2, 64, dtype=torch.int32), 4, 64, "floating"),
        (torch.zeros(2, 64), 4, 0, "group_size"),
        (torch.zeros(2, 64), 4, -64, "group_size"),
        (torch.zeros(2, 64), 4, 48, "group_size"),
        (torch.zeros(2, 63), 4, 63, "group_size"),
        (torch.zeros(2, 6), 2, 6, "group_size"),
        (torch.full((2, 64), torch.nan), 4, 64, "finite"),
        (torch.full((2, 64), torch.inf), 8, 64, "finite"),
        (torch.full((2, 64), 1e300, dtype=torch.float64), 8, 64, "finite"),
    ],
)
def test_what_cannot_be_quantized_is_refused(weight: Tensor, bits: int, group_size: int, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        quantize(weight, bits, group_size)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, -1.0, 0.0, 1e-40])
def test_bad_scales_are_refused(bad: float) -> None:
    check_scales("weight_scale", torch.ones(3).bfloat16())
    with pytest.raises(ValueError, match="weight_scale"):
        check_scales("weight_scale", torch.tensor([1.0, bad]).bfloat16())
