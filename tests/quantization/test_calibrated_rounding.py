"""Laws of rounding by second moments: plain where H is the identity, never worse, near the best, on the same grid."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_unified_diffusion.quantization import dequantize, quantize, quantize_calibrated
from hf_unified_diffusion.quantization.calibrated_rounding import DAMPING, damped

LEVELS = {8: torch.arange(-128.0, 128), 4: torch.arange(-8.0, 8), 2: torch.tensor([-1.5, -0.5, 0.5, 1.5])}


def errors(weight: Tensor, restored: Tensor, metric: Tensor) -> Tensor:
    """e H e^T of each row, in float64."""
    error = (weight - restored).double()
    return ((error @ metric.double()) * error).sum(dim=1)


def correlated_inputs(columns: int, count: int, seed: int) -> Tensor:
    """Rows of a few strong directions, as the inputs of a layer are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)[:, None]
    return torch.randn(count, columns, generator=generator) @ mixing


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A matrix and moments of inputs: of many, of fewer than columns, of none, and with columns that are silent."""
    columns, seed = 16 * draw(st.integers(1, 3)), draw(st.integers(0, 2**32))
    weight = torch.randn(draw(st.integers(1, 5)), columns, generator=torch.Generator().manual_seed(seed))
    inputs = correlated_inputs(columns, draw(st.sampled_from([0, 1, 10, 200])), seed)
    inputs[:, : draw(st.integers(0, 8))] = 0
    return weight ** draw(st.sampled_from([1, 3])), inputs.T @ inputs * draw(st.sampled_from([1e-6, 1.0, 1e6]))


@pytest.mark.parametrize("bits", [2, 4, 8])
@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_no_row_is_worse_than_by_plain_rounding(bits: int, problem: tuple[Tensor, Tensor]) -> None:
    weight, moments = problem
    metric = damped(moments, weight.shape[1])
    plain = errors(weight, dequantize(*quantize(weight, bits, 16), bits), metric)
    found = errors(weight, dequantize(*quantize_calibrated(weight, moments, bits, 16), bits), metric)
    assert torch.all(found <= plain * (1 + 1e-4) + 1e-6 * errors(weight, 0 * weight, metric))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_strong_directions_are_spared(bits: int) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    inputs = correlated_inputs(64, 1000, seed=1)
    plain, found = (
        (inputs @ (weight - dequantize(*codes, bits)).T).square().sum()
        for codes in (quantize(weight, bits, 32), quantize_calibrated(weight, inputs.T @ inputs, bits, 32))
    )
    assert found < plain / 2


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_inputs_that_excite_all_columns_alike_give_plain_rounding(bits: int) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    packed, scale = quantize(weight, bits, 32)
    found, found_scale = quantize_calibrated(weight, 3 * torch.eye(64), bits, 32, sweeps=0)
    assert torch.equal(packed, found) and torch.equal(scale, found_scale)


@pytest.mark.parametrize("bits", [2, 4])
def test_every_weight_is_a_level_times_the_scale_of_its_group(bits: int) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    inputs = correlated_inputs(64, 100, seed=2)
    packed, scale = quantize_calibrated(weight, inputs.T @ inputs, bits, 32)
    assert packed.shape == (8, 64 * bits // 8) and packed.dtype == torch.uint8
    assert scale.shape == (8, 2) and scale.dtype == torch.bfloat16 and torch.all(scale > 0)
    levels = dequantize(packed, scale, bits) / scale.float().repeat_interleave(32, dim=1)
    assert torch.all((levels.unsqueeze(-1) - LEVELS[bits]).abs().amin(-1) < 1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_close_to_the_best_of_all_codes(seed: int) -> None:
    weight = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))
    inputs = correlated_inputs(4, 50, seed)
    moments, metric = inputs.T @ inputs, damped(inputs.T @ inputs, 4)
    packed, scale = quantize_calibrated(weight, moments, 2, 4)
    found = errors(weight, dequantize(packed, scale, 2), metric)
    every_code = torch.tensor(list(product(LEVELS[2].tolist(), repeat=4)))
    best = errors(weight, every_code * scale.float(), metric).amin()
    assert best * (1 - 1e-5) <= found.item() <= 1.5 * best  # at the scale that was found


def test_the_fitted_scale_beats_its_neighbours() -> None:
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))
    inputs = correlated_inputs(16, 100, seed=3)
    metric = damped(inputs.T @ inputs, 16)
    packed, scale = quantize_calibrated(weight, inputs.T @ inputs, 4, 16)
    here = errors(weight, dequantize(packed, scale, 4), metric)
    for factor in (0.95, 1.05):
        assert torch.all(here < errors(weight, dequantize(packed, scale.float() * factor, 4), metric))


def test_moments_that_are_not_of_the_columns_are_refused() -> None:
    weight = torch.randn(4, 16)
    for moments in (torch.eye(15), torch.full((16, 16), torch.nan), torch.ones(16)):
        with pytest.raises(ValueError, match="moments must be a finite 16 x 16 matrix"):
            quantize_calibrated(weight, moments, 4, 16)


def test_autocast_changes_nothing() -> None:
    weight, inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), correlated_inputs(64, 100, seed=2)
    packed, scale = quantize_calibrated(weight, inputs.T @ inputs, 4, 32)
    moments = inputs.T @ inputs
    with torch.autocast("cpu", torch.bfloat16):
        found, found_scale = quantize_calibrated(weight, moments, 4, 32)
    assert torch.equal(packed, found) and torch.equal(scale, found_scale)


def test_damping_is_a_share_of_the_mean_moment() -> None:
    found = damped(torch.diag(torch.tensor([4.0, 2.0])), 2)
    assert torch.allclose(found, torch.diag(torch.tensor([4 / 3 + DAMPING, 2 / 3 + DAMPING])))
