"""Laws that every process obeys in distribution, with fixed seeds and chi-square or three-sigma bounds."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Generator

from hf_unified_diffusion.processes import (
    SCHEDULES,
    GaussianFlow,
    Masked,
    antithetic_times,
    complementary_masks,
    complementary_times,
    time_grid,
)
from tests.chi_square import fits

VOCAB, MASK = 5, 4
ROWS, LENGTH = 4000, 8
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@pytest.fixture
def generator():
    return Generator().manual_seed(0)


def full(value: float) -> torch.Tensor:
    return torch.full((ROWS,), value)


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.4), (0.5, 0.45), (0.3, 0.01)])
def test_masked_there_and_back_has_the_marginal_of_straight(schedule, t, s, generator):
    """Corrupt to t, reverse to s with the truth: the number of masks per row is that of corrupting to s."""
    process = Masked(MASK, schedule)
    x_0 = torch.randint(0, MASK, (ROWS, LENGTH), generator=generator)
    truth = torch.nn.functional.one_hot(x_0, VOCAB).float() * 1e4
    x_s = process.reverse(truth, process.corrupt(x_0, full(t), generator), full(t), full(s), generator)
    p = schedule.noise(torch.tensor(s)).item()
    binomial = torch.tensor([math.comb(LENGTH, k) * p**k * (1 - p) ** (LENGTH - k) for k in range(LENGTH + 1)])
    assert fits((x_s == MASK).sum(1), binomial)
    assert torch.equal(x_s[x_s != MASK], x_0[x_s != MASK])


@every_schedule
def test_masked_ancestral_sampling_has_the_distribution_of_the_data(schedule, generator):
    """With the right marginals as the denoiser, many small steps from the prior draw from those marginals."""
    process = Masked(MASK, schedule)
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0])
    logits = probs.log().expand(ROWS, LENGTH, VOCAB)
    x_t = process.prior((ROWS, LENGTH), generator)
    times = time_grid(12).tolist()
    for t, s in pairwise(times):
        x_t = process.reverse(logits, x_t, full(t), full(s), generator)
    assert fits(x_t, probs)


@every_schedule
def test_an_ignorant_model_pays_log_vocab_nats_per_token(schedule, generator):
    """The bound over t does not depend on the schedule; uniform logits cost log V (arXiv:2406.07524, eq. 10)."""
    process = Masked(MASK, schedule)
    x_0 = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    t = antithetic_times(ROWS, generator)
    loss = process.loss(torch.zeros(ROWS, LENGTH, VOCAB), x_0, process.corrupt(x_0, t, generator), t)
    error = loss.std() / math.sqrt(ROWS)
    assert abs(loss.mean() - math.log(VOCAB)) < 4 * error
    assert error < 0.1


@every_schedule
def test_the_bound_is_the_entropy_for_a_perfect_model_of_independent_tokens(schedule, generator):
    process = Masked(MASK, schedule)
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0])
    x_0 = torch.multinomial(probs, ROWS * LENGTH, replacement=True, generator=generator).view(ROWS, LENGTH)
    t = antithetic_times(ROWS, generator)
    logits = probs.log().expand(ROWS, LENGTH, VOCAB)
    loss = process.loss(logits, x_0, process.corrupt(x_0, t, generator), t)
    entropy = torch.special.entr(probs).sum()
    assert abs(loss.mean() - entropy) < 4 * loss.std() / math.sqrt(ROWS)


@every_schedule
def test_complementary_masks_leave_the_bound_where_it_is(schedule, generator):
    """A mask and its complement, each at its own time, estimate the same bound."""
    process = Masked(MASK, schedule)
    x_0 = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    # Drawing the level, not the time, and weighting by 1/level is the same integral for every schedule.
    level = antithetic_times(ROWS, generator) * process.mask_probability(torch.ones(1))
    t = schedule.time_at(level)
    hidden = process.corrupt(x_0, t, generator) == MASK
    x_t = torch.where(complementary_masks(hidden), MASK, x_0.repeat(2, 1))
    levels = process.mask_probability(torch.cat([t, complementary_times(t, schedule)]))
    nats = (x_t == MASK).float().mean(1) / levels * math.log(VOCAB)
    first, second = nats.chunk(2)
    for estimate in (first, second):
        assert abs(estimate.mean() - math.log(VOCAB)) < 4 * estimate.std() / math.sqrt(ROWS)


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.6, 0.1)])
def test_gaussian_there_and_back_has_the_marginal_of_straight(schedule, t, s, generator):
    """Corrupt to t, reverse to s with the truth: normal with mean (1 - sigma_s) x_0 and deviation sigma_s."""
    process = GaussianFlow(schedule)
    x_0 = torch.full((ROWS, LENGTH), 2.0)
    x_s = process.reverse(x_0, process.corrupt(x_0, full(t), generator), full(t), full(s), generator)
    sigma = process.noise_std(torch.tensor(s))
    quantile = torch.special.ndtr((x_s - (1 - sigma) * 2.0) / sigma)
    bins = (quantile * 20).long().clamp(0, 19)
    assert fits(bins, torch.full((20,), 0.05))


@every_schedule
def test_gaussian_flow_carries_noise_to_the_data(schedule, generator):
    """With E[x_0 | x_t] of normal data as the denoiser, many steps from the prior give that normal."""
    process, mean, deviation = GaussianFlow(schedule), 1.5, 0.5
    x_t = process.prior((ROWS, LENGTH), generator)
    times = time_grid(200).tolist()
    for t, s in pairwise(times):
        sigma = process.noise_std(torch.tensor(t))
        gain = (1 - sigma) * deviation**2 / ((1 - sigma) ** 2 * deviation**2 + sigma**2)
        clean = mean + gain * (x_t - (1 - sigma) * mean)
        x_t = process.reverse(clean, x_t, full(t), full(s), generator)
    assert x_t.mean() == pytest.approx(mean, abs=0.02)
    assert x_t.std() == pytest.approx(deviation, abs=0.02)
