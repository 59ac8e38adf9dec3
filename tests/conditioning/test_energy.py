"""Laws of energies on continuous data: a Gaussian flow whose denoiser is known in closed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion import KeepPixels, Loudness, Palette, with_energies
from hf_unified_diffusion.conditioning.energies_continuous import rms
from hf_unified_diffusion.conditioning.energy import gradient, through
from hf_unified_diffusion.conditioning.rejection import Attempt, accepted_sample
from hf_unified_diffusion.pipelines.diffusion_core import diffuse
from hf_unified_diffusion.processes.gaussian import GaussianFlow

SHAPE = (3, 4, 4)
TIMES = torch.linspace(1, 1 / 8, 8)
TARGET = torch.full(SHAPE, 0.8)
LEFT = torch.zeros(SHAPE, dtype=torch.bool)
LEFT[..., :2] = True
COLORS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
READY = {"pixels": KeepPixels(TARGET, LEFT), "palette": Palette(COLORS), "loudness": Loudness(-20.0)}


def standard_normal(x_t, t, condition=None):
    """E[x_0 | x_t] of clean data N(0, I): (1 - t) x_t / ((1 - t)^2 + t^2)."""
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * x_t / ((1 - t) ** 2 + t**2)


def sampled(denoiser, batch=16):
    flow, generator = GaussianFlow(), torch.Generator().manual_seed(0)
    following = dict(zip(TIMES.tolist(), [*TIMES[1:].tolist(), 0.0], strict=True))

    def step(clean, t, x_t):
        s = torch.full((batch,), following[float(t)])
        return flow.reverse(clean, x_t, t.expand(batch), s, generator)

    return diffuse(denoiser, step, flow.prior((batch, *SHAPE), generator), TIMES)


def test_scale_or_weight_zero_is_the_denoiser_itself():
    assert with_energies(standard_normal, list(READY.values()), 0) is standard_normal
    assert with_energies(standard_normal, [Palette(COLORS, weight=0.0)], 1.0) is standard_normal
    assert with_energies(standard_normal, [], 1.0) is standard_normal


@pytest.mark.parametrize("name", list(READY))
def test_each_moves_what_it_measures(name):
    energy = READY[name]
    plain, moved = sampled(standard_normal), sampled(with_energies(standard_normal, [energy], 1.0))
    assert (energy(moved) < energy(plain)).all() and not energy.accepts(plain).any()
    assert energy.accepts(moved).all()


def test_two_at_once_move_both():
    pixels, palette = KeepPixels(TARGET, LEFT, weight=0.6), Palette(COLORS, weight=0.4)
    plain, moved = sampled(standard_normal), sampled(with_energies(standard_normal, [pixels, palette], 0.9))
    assert (pixels(moved) < pixels(plain)).all() and (palette(moved) < palette(plain)).all()


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0, 2), weights=st.tuples(st.floats(0, 2), st.floats(0, 2)), seed=st.integers(0, 99))
def test_the_estimate_goes_down_the_weighted_gradients(scale, weights, seed):
    """Gradients known by hand: mask (x - target), and (rms - level) x / rms."""
    clean = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed))
    energies = [KeepPixels(TARGET, LEFT, weight=weights[0]), Loudness(-6.0, weight=weights[1])]
    level = rms(clean).view(-1, 1, 1, 1)
    slope = weights[0] * LEFT * (clean - TARGET) + weights[1] * (level - 10 ** (-6 / 20)) * clean / level
    found = with_energies(lambda *_: clean, energies, scale)(clean, torch.ones(2), None)
    torch.testing.assert_close(found, clean - scale * slope, atol=1e-4, rtol=1e-4)


def test_the_score_moves_by_the_gradient():
    """final score = score - eta * grad E, the score of a flow being ((1 - t) clean - x_t) / t^2."""
    x_t, t, scale = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1)), 0.4, 0.3
    time, energy = torch.full((2,), t), READY["palette"]
    clean = standard_normal(x_t, time)
    score = ((1 - t) * clean - x_t) / t**2
    moved = ((1 - t) * with_energies(standard_normal, [energy], scale)(x_t, time, None) - x_t) / t**2
    eta = scale * (1 - t) / t**2
    torch.testing.assert_close(moved, score - eta * gradient(energy, clean), atol=1e-4, rtol=1e-4)


def test_through_a_decoder():
    decoded = through(Palette(COLORS), lambda latents: 2 * latents)
    clean = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(gradient(decoded, clean), 2 * gradient(Palette(COLORS), 2 * clean))
    assert torch.equal(decoded.accepts(clean), Palette(COLORS).accepts(2 * clean))


def test_silence_has_a_finite_gradient():
    assert gradient(Loudness(-20.0), torch.zeros(1, *SHAPE)).isfinite().all()


@settings(max_examples=30, deadline=None)
@given(passes_at=st.integers(0, 9), most=st.integers(0, 6), growth=st.floats(1, 4))
def test_retries_are_bounded_and_grow(passes_at, most, growth):
    scales = []

    def draw(scale):
        scales.append(scale)
        return len(scales), Attempt(scale, {"e": 1.0}, {"e": len(scales) > passes_at})

    sample, history = accepted_sample(draw, 0.5, most, growth)
    assert len(history) == len(scales) == min(passes_at, most) + 1
    assert scales == [0.5 * growth**i for i in range(len(scales))]
    assert history[-1].is_accepted == (passes_at <= most) and sample == len(scales)


def test_the_one_that_breaks_fewest_is_kept():
    verdicts = iter([{"a": False, "b": True}, {"a": False, "b": False}])
    sample, history = accepted_sample(lambda scale: (scale, Attempt(scale, {}, next(verdicts))), 1.0, 1, 2.0)
    assert sample == 1.0 and len(history) == 2


BAD = {
    "scale": (lambda: with_energies(standard_normal, [], -1.0), "scale must be a finite number of at least 0"),
    "nan": (lambda: with_energies(standard_normal, [], math.nan), "scale must be a finite number"),
    "none": (lambda: with_energies(standard_normal, [3], 1.0), "energies must each be an EnergyModel, got int"),
    "no list": (lambda: with_energies(standard_normal, 3, 1.0), "energies must be a list of energies, got int"),
    "weight": (
        lambda: with_energies(standard_normal, [Palette(COLORS, weight=-1.0)], 1.0),
        "the weight of palette must be a finite number of at least 0, got -1.0",
    ),
    "mask": (lambda: KeepPixels(TARGET, torch.zeros(4, dtype=torch.bool)), "mask must be bool and keep a pixel"),
    "mask shape": (lambda: KeepPixels(TARGET, torch.ones(5, dtype=torch.bool)), "mask must fit \\(3, 4, 4\\), got"),
    "target": (lambda: READY["pixels"](torch.zeros(1, 3, 5, 5)), "samples must have the target's shape"),
    "colors": (lambda: Palette(torch.zeros(0, 3)), "colors must be finite"),
    "channels": (lambda: READY["palette"](torch.zeros(1, 4, 2, 2)), "samples must be \\(batch, 3, H, W\\)"),
    "level": (lambda: Loudness(math.nan), "level_db must be in"),
    "shape": (lambda: gradient(lambda x: x.sum(), torch.zeros(2, 3)), "one differentiable number a sample"),
    "constant": (lambda: gradient(lambda x: torch.zeros(2), torch.zeros(2, 3)), "does not depend on the sample"),
    "infinite": (lambda: gradient(lambda x: x.sqrt().sum(1), torch.zeros(2, 3)), "must have a finite gradient"),
    "retries": (lambda: accepted_sample(lambda s: s, 1.0, -1, 2.0), "energy_retries must be an integer in"),
    "growth": (lambda: accepted_sample(lambda s: s, 1.0, 1, 0.5), "energy_growth must be at least 1, got 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    act, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        act()
