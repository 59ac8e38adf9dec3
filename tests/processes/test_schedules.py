"""Schedules rise from 0 to 1; their slopes, weights and inverses agree with the curves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.processes import COSINE, LINEAR, SCHEDULES, Schedule, differentiated, find_schedule, tabulated

BENT = tabulated([(0, 0), (0.25, 0.6), (1, 1)])
CUBIC = differentiated(lambda t: t**3)
ALL = {**SCHEDULES, "tabulated": BENT, "differentiated": CUBIC}
every_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
TIMES = torch.linspace(0.001, 0.999, 333, dtype=torch.float64)


@every_schedule
def test_noise_rises_from_0_to_1(schedule):
    levels = schedule.noise(torch.linspace(0, 1, 1001))
    assert levels[0] == 0
    assert levels[-1] == pytest.approx(1, abs=1.001e-3)
    assert (levels.diff() > 0).all()


@every_schedule
def test_signal_and_noise_add_to_one(schedule):
    torch.testing.assert_close(schedule.signal(TIMES) + schedule.noise(TIMES), torch.ones_like(TIMES))


@every_schedule
def test_slope_is_the_derivative(schedule):
    h = 1e-6
    measured = (schedule.noise(TIMES + h) - schedule.noise(TIMES - h)) / (2 * h)
    torch.testing.assert_close(schedule.slope(TIMES), measured, atol=1e-6, rtol=1e-6)


@every_schedule
def test_weight_is_the_slope_of_log_noise(schedule):
    h = 1e-7
    measured = (schedule.noise(TIMES + h).log() - schedule.noise(TIMES - h).log()) / (2 * h)
    torch.testing.assert_close(schedule.weight(TIMES), measured, atol=1e-5, rtol=1e-4)


@every_schedule
def test_time_at_inverts_noise(schedule):
    torch.testing.assert_close(schedule.time_at(schedule.noise(TIMES)), TIMES, atol=1e-12, rtol=0)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(schedule, dtype):
    t = torch.full((3, 2), 0.4, dtype=dtype)
    for curve in (schedule.noise, schedule.slope, schedule.signal, schedule.weight, schedule.time_at):
        assert curve(t).dtype == dtype
        assert curve(t).shape == t.shape


def test_cosine_hides_more_than_linear_in_between():
    assert (COSINE.noise(TIMES) > LINEAR.noise(TIMES)).all()


def test_log_linear_survival_is_affine_in_time():
    t = TIMES
    survival = SCHEDULES["log_linear"].signal(t)
    torch.testing.assert_close(survival, 1 - 0.999 * t)


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6, unique=True), st.data())
@settings(max_examples=40, deadline=None)
def test_tabulated_schedule_goes_through_its_points(inner, data):
    times = [0.0, *sorted(inner), 1.0]
    levels = sorted(data.draw(st.lists(st.floats(0, 1), min_size=len(inner), max_size=len(inner))))
    points = list(zip(times, [0.0, *levels, 1.0], strict=True))
    t, level = torch.tensor(points, dtype=torch.float64).unbind(1)
    torch.testing.assert_close(tabulated(points).noise(t), level, atol=1e-9, rtol=0)


def test_a_schedule_is_found_by_name_or_points():
    assert find_schedule("cosine") is COSINE
    t = torch.tensor([0.25])
    torch.testing.assert_close(find_schedule([[0, 0], [0.25, 0.6], [1, 1]]).noise(t), BENT.noise(t))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: find_schedule("sigmoid"), "schedule must be one of .*cosine.*, got 'sigmoid'"),
        (lambda: Schedule(lambda t: t / 2, torch.ones_like), "must run from 0 to 1, got 0 to 0.5"),
        (lambda: Schedule(lambda t: t - 0.1 * torch.sin(9 * math.pi * t), torch.ones_like), "must never fall, got"),
        (lambda: Schedule(lambda t: t / t, torch.ones_like), "must be finite"),
        (lambda: tabulated([(0, 0)]), r"at least two \(time, noise\) points"),
        (lambda: tabulated([(0, 0, 0), (1, 1, 1)]), r"at least two \(time, noise\) points"),
        (lambda: tabulated([(0, 0), (0, 0.5), (1, 1)]), r"must rise from 0 to 1, got \[0.0, 0.0, 1.0\]"),
        (lambda: tabulated([(0, 0), (0.5, 0.9), (0.7, 0.2), (1, 1)]), "must never fall"),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
