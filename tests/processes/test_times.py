"""Grids fall from 1 to 0; training times are uniform and spread; complementary masks partition the tokens."""

import pytest
import torch
from torch import Generator

from hf_unified_diffusion.processes import (
    SCHEDULES,
    WARPS,
    antithetic_times,
    complementary_masks,
    complementary_times,
    find_warp,
    shifted,
    time_grid,
)
from tests.chi_square import fits

EVERY_WARP = {**WARPS, "shifted 3": shifted(3.0), "shifted 1/2": shifted(0.5)}


@pytest.mark.parametrize("warp", EVERY_WARP.values(), ids=EVERY_WARP)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 64])
def test_grid_falls_from_1_to_0(warp, num_steps):
    times = time_grid(num_steps, warp)
    assert times.shape == (num_steps + 1,)
    assert times[0] == pytest.approx(1, abs=1e-12)
    assert times[-1] == 0
    assert (times.diff() < 0).all()


def test_only_the_uniform_grid_is_uniform():
    spread = {name: time_grid(16, warp).diff().std().item() for name, warp in EVERY_WARP.items()}
    assert spread.pop("uniform") < 1e-12
    assert min(spread.values()) > 1e-3


def test_shift_moves_the_grid_towards_noise():
    assert (time_grid(9, shifted(3.0))[1:-1] > time_grid(9)[1:-1]).all()


@pytest.mark.parametrize("count", [1, 2, 33])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.3, 0.8)])
def test_antithetic_times_fill_each_slice_once(count, low, high):
    t = antithetic_times(count, Generator().manual_seed(1), low, high).double()
    assert ((t > low) & (t <= high + 1e-7)).all()
    slices = ((t - low) / (high - low) * count - 1e-5).floor().sort().values
    assert slices.tolist() == list(range(count))


def test_one_antithetic_time_is_uniform():
    generator = Generator().manual_seed(2)
    first = torch.stack([antithetic_times(4, generator)[0] for _ in range(4000)])
    assert fits((first * 10).ceil().long() - 1, torch.full((10,), 0.1))


def test_the_mean_over_antithetic_times_varies_far_less():
    generator = Generator().manual_seed(5)
    plain = torch.stack([torch.rand(32, generator=generator).square().mean() for _ in range(300)]).std()
    spread = torch.stack([antithetic_times(32, generator).square().mean() for _ in range(300)]).std()
    assert spread < plain / 10  # n^(-3/2) against n^(-1/2)


def test_processes_share_the_slices():
    parts = [antithetic_times(5, Generator().manual_seed(3), rank=rank, world_size=3) for rank in range(3)]
    whole = antithetic_times(15, Generator().manual_seed(3))
    torch.testing.assert_close(torch.cat(parts).sort().values, whole.sort().values)


def test_complementary_masks_hide_each_token_once():
    hidden = torch.rand(6, 11, generator=Generator().manual_seed(4)) < 0.3
    first, second = complementary_masks(hidden).chunk(2)
    assert torch.equal(first, hidden)
    assert (first ^ second).all()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_complementary_times_swap_signal_and_noise(schedule):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(schedule.noise(complementary_times(t, schedule)), schedule.signal(t))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: time_grid(0), "num_steps must be at least 1, got 0"),
        (lambda: time_grid(4, torch.sin), "a warp must rise from 0 to 1"),
        (lambda: shifted(0.0), "shift must be positive and finite, got 0.0"),
        (lambda: shifted(float("nan")), "shift must be positive and finite, got nan"),
        (lambda: find_warp("karras"), "spacing must be one of .*, got 'karras'"),
        (lambda: antithetic_times(0, Generator()), "count must be at least 1, got 0"),
        (lambda: antithetic_times(2, Generator(), low=0.5, high=0.5), "low=0.5 and high=0.5"),
        (lambda: antithetic_times(2, Generator(), low=float("nan")), "low=nan"),
        (lambda: antithetic_times(2, Generator(), rank=2, world_size=2), r"rank must be in \[0, 2\), got 2"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
