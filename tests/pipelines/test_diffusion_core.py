"""The loop knows no modality: tokens and continuous samples go through it alike."""

import torch

from hf_unified_diffusion.pipelines.diffusion_core import diffuse
from hf_unified_diffusion.processes.randomness import spawn_generators
from hf_unified_diffusion.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

MASK = 9


def test_tokens_become_what_the_denoiser_says_is_clean():
    x_0 = torch.randint(0, MASK, (4, 12), generator=torch.Generator().manual_seed(0))
    sure = torch.nn.functional.one_hot(x_0, MASK + 1) * 1e4
    scheduler = MaskedDiffusionScheduler(mask_token_id=MASK, num_inference_steps=5)
    generators = spawn_generators(0, 4)

    def step(clean, t, x_t):
        return scheduler.step(clean, t, x_t, generator=generators).prev_sample

    x_1 = torch.full_like(x_0, MASK)
    assert torch.equal(diffuse(lambda x_t, t, condition: sure.float(), step, x_1, scheduler.timesteps), x_0)


def test_a_straight_flow_ends_at_the_clean_sample():
    """Euler steps on x_t = (1 - t) x_0 + t noise are exact for a denoiser that knows x_0."""
    x_0, noise = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([1.0, 0.7, 0.2], dtype=torch.float64)
    after = dict(zip(times.tolist(), [0.7, 0.2, 0.0], strict=True))

    def step(clean, t, x_t):
        s = after[float(t)]
        return x_t + (s - t) * (x_t - clean) / t

    x = diffuse(lambda x_t, t, condition: x_0, step, noise, times)
    torch.testing.assert_close(x, x_0)


def test_the_denoiser_is_asked_once_a_time_with_time_and_condition():
    asked = []

    def denoiser(x_t, t, condition):
        asked.append((t.tolist(), condition))
        return x_t

    diffuse(denoiser, lambda clean, t, x_t: clean, torch.zeros(2, 3), torch.tensor([1.0, 0.5]), condition="given")
    assert asked == [([1.0, 1.0], "given"), ([0.5, 0.5], "given")]


def test_after_step_changes_the_sample_and_ends_the_loop():
    times = torch.tensor([1.0, 0.75, 0.5, 0.25])
    count = diffuse(
        lambda x_t, t, condition: x_t,
        lambda clean, t, x_t: clean,
        torch.zeros(1, 1),
        times,
        after_step=lambda t, x_t, clean: (x_t + 1, float(t) > 0.5),
    )
    assert count.item() == 3
