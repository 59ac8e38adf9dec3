"""Flow matching at its edges; its distributions are in tests/laws."""

import pytest
import torch
from torch import Generator

from hf_unified_diffusion.contracts import Process
from hf_unified_diffusion.processes import SCHEDULES, GaussianFlow, spawn_generators

FLOW = GaussianFlow()
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@pytest.fixture
def generator():
    return Generator().manual_seed(0)


@pytest.fixture
def x_0(generator):
    return torch.randn(4, 3, 5, generator=generator)


def test_it_is_a_process():
    assert isinstance(FLOW, Process)


@every_schedule
def test_the_sample_is_clean_at_0_and_noise_of_that_size_at_t(x_0, generator, schedule):
    process, t = GaussianFlow(schedule), torch.tensor([0.0, 0.1, 0.5, 1.0])
    x_t = process.corrupt(x_0, t, spawn_generators(0, 4))
    noise = process.corrupt(torch.zeros_like(x_0), torch.ones(4), spawn_generators(0, 4)) / process.noise_std(
        torch.ones(1)
    )
    sigma = process.noise_std(t)[:, None, None]
    torch.testing.assert_close(x_t, (1 - sigma) * x_0 + sigma * noise)
    assert torch.equal(x_t[0], x_0[0])


@every_schedule
def test_the_truth_leads_back_to_the_clean_sample(x_0, generator, schedule):
    process = GaussianFlow(schedule)
    x_t = process.prior(tuple(x_0.shape), generator)
    for t, s in ((1.0, 0.6), (0.6, 0.2), (0.2, 0.0)):
        x_t = process.reverse(x_0, x_t, torch.full((4,), t), torch.full((4,), s), generator)
    torch.testing.assert_close(x_t, x_0)


@every_schedule
def test_a_perfect_step_stays_on_the_line(x_0, schedule):
    """Corrupting to s with the same noise is where the step from t arrives."""
    process, t, s = GaussianFlow(schedule), torch.full((4,), 0.8), torch.full((4,), 0.3)
    x_t, x_s = (process.corrupt(x_0, time, spawn_generators(0, 4)) for time in (t, s))
    torch.testing.assert_close(process.reverse(x_0, x_t, t, s, Generator()), x_s)


def test_steps_compose(x_0, generator):
    process = FLOW
    x_1, clean = process.prior(tuple(x_0.shape), generator), torch.zeros_like(x_0)
    t, s, r = (torch.full((4,), time) for time in (1.0, 0.5, 0.25))
    two = process.reverse(clean, process.reverse(clean, x_1, t, s, generator), s, r, generator)
    torch.testing.assert_close(two, process.reverse(clean, x_1, t, r, generator))


@every_schedule
def test_conversions_invert_each_other(x_0, generator, schedule):
    process, t = GaussianFlow(schedule), torch.tensor([0.05, 0.3, 0.9, 1.0])
    x_t = process.corrupt(x_0, t, generator)
    velocity = process.velocity(x_0, x_t, t)
    torch.testing.assert_close(process.clean(velocity, x_t, t), x_0)
    torch.testing.assert_close(process.noise(x_0, x_t, t) - x_0, velocity)
    sigma = process.noise_std(t)[:, None, None]
    torch.testing.assert_close((1 - sigma) * x_0 + sigma * process.noise(x_0, x_t, t), x_t)


def test_weight_turns_the_error_of_the_sample_into_that_of_the_velocity(x_0, generator):
    process, t = FLOW, torch.tensor([0.05, 0.3, 0.9, 1.0])
    x_t = process.corrupt(x_0, t, generator)
    guess = x_0 + torch.randn(x_0.shape, generator=generator)
    error = process.velocity(guess, x_t, t) - process.velocity(x_0, x_t, t)
    expected = error.square().flatten(1).mean(1)
    torch.testing.assert_close(process.loss(guess, x_0, x_t, t) * process.loss_weight(t), expected)


def test_tokens_have_times_of_their_own(x_0, generator):
    t = torch.tensor([0.0, 0.5, 1.0]).expand(4, 3)
    x_t = FLOW.corrupt(x_0, t, generator)
    assert torch.equal(x_t[:, 0], x_0[:, 0])
    assert (x_t[:, 1:] != x_0[:, 1:]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_kept(x_0, generator, dtype):
    t, s = torch.full((4,), 0.8), torch.full((4,), 0.3)
    x_t = FLOW.corrupt(x_0.to(dtype), t, generator)
    assert x_t.dtype == dtype
    assert FLOW.reverse(x_0.to(dtype), x_t, t, s, generator).dtype == dtype


HALF = torch.full((2,), 0.5)
DATA = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FLOW.corrupt(DATA.long(), HALF, Generator()), "x_0 must be floating point.*got torch.int64"),
        (
            lambda: FLOW.corrupt(DATA, -HALF, Generator()),
            r"t must be in \[0, 1\], got values from -0.5",
        ),
        (
            lambda: FLOW.corrupt(DATA, torch.tensor(0.5), Generator()),
            r"leading axes of the sample .* got \(\)",
        ),
        (lambda: FLOW.reverse(DATA, DATA, HALF * 0, HALF * 0, Generator()), "t above 0"),
        (lambda: FLOW.velocity(DATA, DATA, HALF * 0), "t above 0"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
