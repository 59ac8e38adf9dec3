"""diffusers' flow schedulers step by estimates of the clean sample, at the times that the network is told."""

from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from hf_unified_diffusion.pipelines.diffusion_core import diffuse
from hf_unified_diffusion.processes import GaussianFlow, spawn_generators
from hf_unified_diffusion.processes.times import time_grid
from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler, picture_scheduler, plan_flow

FAMILY = [
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMapEulerDiscreteScheduler,
    UniPCMultistepScheduler,
]
families = pytest.mark.parametrize("family", FAMILY)


def scheduler_of(family):
    """With times shifted by tokens."""
    if family is UniPCMultistepScheduler:
        return picture_scheduler()
    return family.from_config(flow_scheduler().config)


def gaussian_denoiser(std):
    """The exact E[x_0 | x_t] of Gaussian data: what a perfect network says."""

    def denoise(x_t, t, condition=None):
        signal, noise = 1 - t[:, None, None], t[:, None, None]
        return signal * std**2 * x_t / (signal**2 * std**2 + noise**2)

    return denoise


def noise(rows=2):
    return GaussianFlow().prior((rows, 16, 4), spawn_generators(0, rows))


@families
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_network_that_knows_the_sample_is_followed_to_it(family, num_steps):
    x_0 = torch.linspace(-2, 2, 128).reshape(2, 16, 4)
    run = plan_flow(scheduler_of(family), num_steps, 16)
    drawn = diffuse(lambda x_t, t, condition: x_0, run.step, noise(), run.times)
    torch.testing.assert_close(drawn, x_0, atol=1e-5, rtol=0)


@families
def test_more_steps_come_nearer_to_the_exact_flow(family):
    """For Gaussian data the flow is known: it scales noise by the deviation of the data."""
    errors = []
    for num_steps in (4, 16, 64):
        run = plan_flow(scheduler_of(family), num_steps, 16)
        drawn = diffuse(gaussian_denoiser(0.5), run.step, noise(), run.times)
        errors.append((drawn - 0.5 * noise()).abs().max().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.05


def two_hills(x_t, t, condition=None, std=0.5):
    """The exact E[x_0 | x_t] of data around 1 or -1: a flow whose lines bend."""
    signal, noise = 1 - t[:, None, None], t[:, None, None]
    variance = signal**2 * std**2 + noise**2
    return (noise**2 * torch.tanh(signal * x_t / variance) + signal * std**2 * x_t) / variance


@pytest.mark.parametrize("denoiser", [gaussian_denoiser(0.5), two_hills])
def test_ten_steps_that_look_back_end_nearer_than_sixteen_of_eulers(denoiser):
    def drawn(scheduler, num_steps):
        run = plan_flow(scheduler, num_steps, 16)
        return diffuse(denoiser, run.step, noise(), run.times)

    exact = drawn(flow_scheduler(), 2000)
    ten, sixteen = drawn(picture_scheduler(), 10), drawn(flow_scheduler(), 16)
    assert (ten - exact).square().mean() < (sixteen - exact).square().mean()


def test_what_a_callback_did_is_not_taken_back():
    """A corrector starts anew from the sample before: of one that somebody moved nothing of that may be left."""

    def second_step(x_1, moved):
        run = plan_flow(picture_scheduler(), 3, 16)
        x_t = run.step(torch.zeros_like(x_1), run.times[0], x_1)
        return run.step(torch.ones_like(x_1), run.times[1], torch.full_like(x_t, 0.5) if moved else x_t)

    first, second = (second_step(x_1, moved=True) for x_1 in (noise(), noise() + 1))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    assert not torch.allclose(second_step(noise(), moved=False), second_step(noise() + 1, moved=False), atol=1e-2)


def test_euler_is_the_reverse_of_our_own_process():
    run = plan_flow(flow_scheduler(use_dynamic_shifting=False), 4, 16)
    ours, times = noise(), time_grid(4).float()
    for t, s in pairwise(times):
        clean = gaussian_denoiser(0.5)(ours, t.expand(2))
        ours = GaussianFlow().reverse(clean, ours, t.expand(2), s.expand(2), spawn_generators(0, 2))
    theirs = diffuse(gaussian_denoiser(0.5), run.step, noise(), run.times)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@families
@pytest.mark.parametrize(("num_tokens", "shift"), [(16, 1.0), (256, 4.0), (136, 2.0)])
def test_times_are_shifted_by_the_number_of_tokens(family, num_tokens, shift):
    scheduler = scheduler_of(family)
    run = plan_flow(scheduler, 4, num_tokens)
    u = time_grid(4)[:-1].float()
    if family is FlowMatchHeunDiscreteScheduler:  # it makes its own grid, and visits most times twice
        u = torch.linspace(1, 0.001, 4)
    levels = run.times.unique().flip(0)
    torch.testing.assert_close(levels, shift * u / (1 + (shift - 1) * u), atol=2e-6, rtol=0)
    assert scheduler.config.get("shift", 1.0) == 1.0


@families
def test_strength_takes_the_last_steps(family):
    scheduler = scheduler_of(family)
    whole = plan_flow(scheduler, 8, 64).times
    for strength, num_steps in ((0.0, 0), (0.01, 1), (0.5, 4), (0.51, 5), (1.0, 8)):
        times = plan_flow(scheduler, 8, 64, strength).times
        assert len(times.unique()) == num_steps
        assert torch.equal(times, whole[len(whole) - len(times) :])


def test_a_run_leaves_the_scheduler_as_it_is():
    scheduler = flow_scheduler()
    before = scheduler.timesteps.clone()
    run = plan_flow(scheduler, 3, 64)
    diffuse(gaussian_denoiser(0.5), run.step, noise(), run.times)
    assert torch.equal(scheduler.timesteps, before) and scheduler.step_index is None


def test_schedulers_that_draw_do_so_from_the_rows_generators():
    scheduler = flow_scheduler(stochastic_sampling=True)

    def drawn(rows):
        run = plan_flow(scheduler, 3, 16, generators=spawn_generators(0, rows))
        return diffuse(gaussian_denoiser(0.5), run.step, noise(rows), run.times)

    assert torch.equal(drawn(3)[:2], drawn(2))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), EulerDiscreteScheduler(), UniPCMultistepScheduler()])
def test_schedulers_of_other_processes_are_refused(scheduler):
    name = type(scheduler).__name__
    with pytest.raises(ValueError, match=f"scheduler must be one of flow matching.* got {name} with .*'epsilon'"):
        plan_flow(scheduler, 4, 16)


def test_reversed_times_and_no_steps_are_refused():
    with pytest.raises(ValueError, match="sigmas of the scheduler must fall from at most 1 to 0"):
        plan_flow(flow_scheduler(invert_sigmas=True), 4, 16)
    with pytest.raises(ValueError, match="num_inference_steps must be an integer of at least 1, got 0"):
        plan_flow(flow_scheduler(), 0, 16)
