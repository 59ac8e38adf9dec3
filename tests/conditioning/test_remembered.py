"""A memory as a denoiser: the exact posterior, and what leads another one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from hf_unified_diffusion.conditioning.remembered import remembered, steered_by_memory
from hf_unified_diffusion.processes import GaussianFlow

FLOW = GaussianFlow()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def constant(value):
    return lambda x_t, t, condition=None: torch.full_like(x_t, value)


@settings(max_examples=30, deadline=None)
@given(t=st.floats(0.05, 1.0), count=st.integers(1, 4), seed=st.integers(0, 99))
def test_it_is_the_posterior_mean_by_bayes(t, count, seed):
    """Densities of torch's own normal distribution, without a shift to the largest."""
    samples, weights = normal(1, count, 3, seed=seed), normal(1, count, seed=seed + 1).abs()
    x_t, time = FLOW.corrupt(samples[:, 0], torch.tensor([t]), Generator().manual_seed(seed)), torch.tensor([t])
    density = torch.distributions.Normal((1 - t) * samples[0], t).log_prob(x_t).sum(dim=-1)
    likely = weights[0] * (density - density.max()).exp()
    expected = (likely[:, None] * samples[0]).sum(dim=0) / likely.sum()
    found = remembered(samples, weights, FLOW)(x_t, time)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)  # times are float32


def test_it_minimises_the_squared_error_of_what_is_remembered():
    """Of all functions of x_t and t; here of those that lean to one sample, or to the mean of all."""
    samples = normal(1, 3, 2).expand(4000, -1, -1)
    chosen = torch.randint(0, 3, (4000,), generator=Generator().manual_seed(1))
    x_0, time = samples[torch.arange(4000), chosen], torch.full((4000,), 0.6)
    x_t = FLOW.corrupt(x_0, time, Generator().manual_seed(2))
    clean = remembered(samples, torch.ones(4000, 3), FLOW)(x_t, time)
    best = (clean - x_0).square().mean()
    for other in (samples[:, 0], samples.mean(dim=1)):
        for share in (0.1, 1.0):
            assert best < (clean + share * (other - clean) - x_0).square().mean()


def test_noise_alone_gives_the_mean_and_almost_none_the_nearest():
    samples, weights = normal(1, 3, 4), torch.tensor([[1.0, 2.0, 0.0]])
    memory = remembered(samples, weights, FLOW)
    mean = (samples[:, 0] + 2 * samples[:, 1]) / 3
    torch.testing.assert_close(memory(normal(1, 4, seed=5), torch.ones(1)), mean)
    near = samples[:, 0] + 0.01 * normal(1, 4, seed=6)
    assert torch.equal(memory(near, torch.tensor([1e-3])), samples[:, 0])
    beyond = samples[:, 2] + 0.01 * normal(1, 4, seed=6)  # its own has the weight 0
    assert not torch.equal(memory(beyond, torch.tensor([1e-3])), samples[:, 2])


def test_at_strength_zero_it_is_the_denoiser_itself_and_at_a_large_one_the_memory():
    samples, x_t, time = normal(1, 1, 4), normal(1, 4, seed=3), torch.tensor([0.4])
    denoiser = constant(7.0)
    assert steered_by_memory(denoiser, samples, torch.ones(1, 1), 0.0, FLOW) is denoiser
    torch.testing.assert_close(
        steered_by_memory(denoiser, samples, torch.ones(1, 1), 1e6, FLOW)(x_t, time), samples[:, 0]
    )
    half = steered_by_memory(denoiser, samples, torch.ones(1, 1), 0.625, FLOW)(x_t, time)
    torch.testing.assert_close(half, (samples[:, 0] + 7.0) / 2)


@settings(max_examples=20, deadline=None)
@given(strengths=st.tuples(st.floats(0, 10), st.floats(0, 10)), t=st.floats(0.01, 1.0))
def test_more_strength_is_nearer_to_the_memory(strengths, t):
    samples, x_t, time = normal(1, 1, 4), normal(1, 4, seed=3), torch.tensor([t])
    low, high = (
        (steered_by_memory(constant(7.0), samples, torch.ones(1, 1), s, FLOW)(x_t, time) - samples[:, 0]).norm()
        for s in sorted(strengths)
    )
    assert high <= low + 1e-9


def test_rows_do_not_depend_on_each_other_and_one_without_a_memory_stays_as_it_is():
    samples, weights = normal(2, 3, 4), torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    x_t, time = normal(2, 4, seed=3), torch.tensor([0.7, 0.7])
    together = steered_by_memory(constant(7.0), samples, weights, 1.0, FLOW)(x_t, time)
    alone = steered_by_memory(constant(7.0), samples[:1], weights[:1], 1.0, FLOW)(x_t[:1], time[:1])
    assert torch.equal(together[:1], alone) and torch.equal(together[1], torch.full((4,), 7.0, dtype=torch.float64))
    assert torch.equal(remembered(samples, weights, FLOW)(x_t, time)[1], torch.zeros(4, dtype=torch.float64))


def test_a_denoiser_that_nobody_hears_is_not_asked():
    def unheard(x_t, t, condition=None):
        raise AssertionError("asked")

    samples, x_t = normal(1, 1, 4), normal(1, 4, seed=3)
    led = steered_by_memory(unheard, samples, torch.ones(1, 1), 1.0, FLOW)
    torch.testing.assert_close(led(x_t, torch.tensor([0.5])), samples[:, 0])
    with pytest.raises(AssertionError, match="asked"):
        led(x_t, torch.tensor([0.49]))


@pytest.mark.parametrize("weights", [torch.ones(1, 3), torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, math.nan]])])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be finite, at least 0, and one a sample"):
        remembered(normal(1, 2, 4), weights, FLOW)


def test_another_shape_and_a_wrong_strength_are_refused():
    with pytest.raises(ValueError, match="x_t must be of the samples' shape"):
        remembered(normal(1, 2, 4), torch.ones(1, 2), FLOW)(normal(1, 5), torch.ones(1))
    with pytest.raises(ValueError, match="memory_strength must be a finite number of at least 0, got -1"):
        steered_by_memory(constant(0.0), normal(1, 2, 4), torch.ones(1, 2), -1.0, FLOW)
