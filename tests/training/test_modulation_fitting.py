"""Fitted gains: 1 where nothing is missing, and what a known filter took away comes back."""

import pytest
import torch

from hf_unified_diffusion.modeling.modulation_filter import ModulationFilter
from hf_unified_diffusion.training.modulation_fitting import fitted_gains, mean_power, smoothed


def sounds(seed: int, count: int = 6) -> list[torch.Tensor]:
    """White noise of several lengths, as if it were speech."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(20, 400 + 8 * number, generator=generator) for number in range(count)]


def test_white_noise_changes_along_bands_as_finely_as_broadly():
    power = mean_power(sounds(0), 8)
    assert power.shape == (20, 8)
    assert (power / power.mean(dim=0) - 1).abs().max() < 0.25
    assert power.mean() == pytest.approx(0.5, rel=0.05)  # of the fades


def test_gains_of_the_same_sounds_are_1():
    torch.testing.assert_close(fitted_gains(sounds(0), sounds(0), size=8), torch.ones(20, 8))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_what_a_filter_took_away_comes_back(exponent):
    lossy = ModulationFilter(20, 8)
    lossy.gains[10:] = 0.5
    made = [lossy(sound[None])[0] for sound in sounds(0)]
    gains = fitted_gains(made, sounds(1), size=8, exponent=exponent, deviation=0.0)
    kept, lost = gains[:9].mean(), gains[11:].mean()
    assert kept == pytest.approx(1, abs=0.1)
    assert lost == pytest.approx(2**exponent, rel=0.1)


def test_smoothing_keeps_what_is_even_and_spreads_a_peak():
    torch.testing.assert_close(smoothed(torch.full((9, 9), 3.0), 1.0), torch.full((9, 9), 3.0))
    peak = torch.zeros(21, 21)
    peak[10, 10] = 1
    spread = smoothed(peak, 1.0)
    assert spread.sum() == pytest.approx(1) and spread[10, 10] == pytest.approx(0.159, abs=2e-3)  # 1 / (2 pi)
    assert torch.equal(smoothed(peak, 0.0), peak)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="exponent must be in"):
        fitted_gains(sounds(0), sounds(1), exponent=1.5)
    with pytest.raises(ValueError, match="at least one sound"):
        fitted_gains([], sounds(1))
