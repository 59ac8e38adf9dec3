"""Masked diffusion at its edges; its distributions are in tests/laws."""

import math

import pytest
import torch
from torch import Generator

from hf_unified_diffusion.contracts import Process
from hf_unified_diffusion.processes import SCHEDULES, Masked, spawn_generators

VOCAB, MASK = 7, 6
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@pytest.fixture
def generator():
    return Generator().manual_seed(0)


@pytest.fixture
def x_0(generator):
    return torch.randint(0, MASK, (5, 12), generator=generator)


def truth(x_0):
    """The logits of a denoiser that knows."""
    return torch.nn.functional.one_hot(x_0, VOCAB).float() * 1e4


def test_it_is_a_process():
    assert isinstance(Masked(MASK), Process)


def test_prior_is_all_masks(generator):
    x_1 = Masked(MASK).prior((2, 3), generator)
    assert x_1.dtype == torch.int64
    assert (x_1 == MASK).all()


def test_nothing_is_hidden_at_0_and_everything_at_1(x_0, generator):
    process = Masked(MASK)
    assert torch.equal(process.corrupt(x_0, torch.zeros(5), generator), x_0)
    assert (process.corrupt(x_0, torch.ones(5), generator) == MASK).all()


def test_tokens_have_times_of_their_own(x_0, generator):
    t = torch.cat([torch.zeros(5, 4), torch.ones(5, 8)], dim=1)
    x_t = Masked(MASK).corrupt(x_0, t, generator)
    assert torch.equal(x_t[:, :4], x_0[:, :4])
    assert (x_t[:, 4:] == MASK).all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_token_dtype_is_kept(x_0, generator, dtype):
    process, t, s = Masked(MASK), torch.full((5,), 0.7), torch.full((5,), 0.2)
    x_t = process.corrupt(x_0.to(dtype), t, generator)
    assert x_t.dtype == dtype
    assert process.reverse(torch.zeros(5, 12, VOCAB), x_t, t, s, generator).dtype == dtype


@every_schedule
def test_a_step_to_0_fills_every_mask_and_keeps_the_rest(x_0, generator, schedule):
    process, t = Masked(MASK, schedule), torch.full((5,), 0.6)
    x_t = process.corrupt(x_0, t, generator)
    x_s = process.reverse(torch.zeros(5, 12, VOCAB), x_t, t, torch.zeros(5), generator)
    assert (x_s != MASK).all()
    assert torch.equal(x_s[x_t != MASK], x_0[x_t != MASK])


def test_a_step_of_no_length_changes_nothing(x_0, generator):
    process, t = Masked(MASK), torch.full((5,), 0.6)
    x_t = process.corrupt(x_0, t, generator)
    assert torch.equal(process.reverse(truth(x_0), x_t, t, t, generator), x_t)


def test_the_truth_costs_nothing(x_0, generator):
    process, t = Masked(MASK), torch.full((5,), 0.6)
    x_t = process.corrupt(x_0, t, generator)
    torch.testing.assert_close(process.loss(truth(x_0), x_0, x_t, t), torch.zeros(5))


def test_clean_samples_cost_nothing_at_time_0(x_0):
    loss = Masked(MASK).loss(torch.zeros(5, 12, VOCAB), x_0, x_0, torch.zeros(5))
    assert torch.equal(loss, torch.zeros(5))


@every_schedule
def test_loss_is_the_weight_times_the_nats_of_masks(x_0, generator, schedule):
    process, t = Masked(MASK, schedule), torch.full((5,), 0.6)
    x_t = process.corrupt(x_0, t, generator)
    expected = (x_t == MASK).float().mean(1) * math.log(VOCAB) * schedule.weight(t)
    torch.testing.assert_close(process.loss(torch.zeros(5, 12, VOCAB), x_0, x_t, t), expected)


def test_rows_do_not_depend_on_their_batch(x_0):
    process, t, s = Masked(MASK), torch.full((5,), 0.7), torch.full((5,), 0.3)
    logits = torch.randn(5, 12, VOCAB, generator=Generator().manual_seed(1))
    x_t = process.corrupt(x_0, t, spawn_generators(1, 5))
    x_s = process.reverse(logits, x_t, t, s, spawn_generators(2, 5))
    for i in range(5):
        row_t = process.corrupt(x_0[i : i + 1], t[:1], spawn_generators(1, 1, first=i))
        row_s = process.reverse(logits[i : i + 1], row_t, t[:1], s[:1], spawn_generators(2, 1, first=i))
        assert torch.equal(row_t[0], x_t[i])
        assert torch.equal(row_s[0], x_s[i])


PROCESS = Masked(MASK)
HALF = torch.full((2,), 0.5)
IDS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Masked(-1), "mask_token_id must be at least 0, got -1"),
        (lambda: PROCESS.corrupt(IDS.float(), HALF, Generator()), "x_0 must be int64 or int32.*got torch.float32"),
        (lambda: PROCESS.corrupt(IDS[0], HALF, Generator()), r"x_0 must be int64 or int32 \(batch, length\)"),
        (
            lambda: PROCESS.corrupt(IDS, HALF + 1, Generator()),
            r"t must be in \[0, 1\], got values from 1.5",
        ),
        (
            lambda: PROCESS.corrupt(IDS, HALF * torch.nan, Generator()),
            r"t must be in \[0, 1\], got values from nan",
        ),
        (lambda: PROCESS.corrupt(IDS, HALF.long(), Generator()), "t must be a float tensor, got torch.int64"),
        (
            lambda: PROCESS.corrupt(IDS, torch.ones(3), Generator()),
            r"leading axes of the sample \(2, 3\), got \(3,\)",
        ),
        (lambda: PROCESS.reverse(torch.zeros(2, 4, 7), IDS, HALF, HALF, Generator()), "logits must be float"),
        (lambda: PROCESS.reverse(torch.zeros(2, 3, 7), IDS, HALF, HALF + 0.1, Generator()), "s must be at most t"),
        (
            lambda: PROCESS.loss(torch.zeros(2, 3, 7).long(), IDS, IDS, HALF),
            "logits must be float .*got torch.int64",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
