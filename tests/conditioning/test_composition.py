"""Laws of a weighted sum of denoisers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion import composed

TIME = torch.ones(2)
CANVAS = torch.zeros(2, 3, dtype=torch.int64)
PICTURE = torch.zeros(2, 3, 4)


def says(seed, width=7, hidden=()):
    found = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found[..., list(hidden)] = -torch.inf
    return lambda x_t, t, condition=None: found


def test_one_of_weight_one_is_itself():
    denoiser = says(0)
    assert composed([denoiser], [1.0]) is denoiser
    assert composed([says(1), denoiser], [0.0, 1]) is denoiser


@settings(max_examples=25, deadline=None)
@given(weight=st.floats(-3, 3), seed=st.integers(0, 99))
def test_continuous_estimates_are_summed(weight, seed):
    first, second = says(seed, 4), says(seed + 1, 4)
    found = composed([first, second], [weight, 1 - weight])(PICTURE, TIME, None)
    expected = weight * first(PICTURE, TIME) + (1 - weight) * second(PICTURE, TIME)
    torch.testing.assert_close(found, expected)


@settings(max_examples=25, deadline=None)
@given(weight=st.floats(0, 1), constant=st.floats(-5, 5))
def test_tokens_are_the_product_of_powers(weight, constant):
    first, second = says(0), says(1)

    def shifted(*args):
        return second(*args) + constant

    found = composed([first, shifted], [weight, 1 - weight])(CANVAS, TIME, None).softmax(-1)
    powers = first(CANVAS, TIME).softmax(-1) ** weight * second(CANVAS, TIME).softmax(-1) ** (1 - weight)
    torch.testing.assert_close(found, powers / powers.sum(-1, keepdim=True))


@given(parts=st.lists(st.floats(0.01, 1), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_the_same_denoiser_several_times_is_itself(parts):
    weights = [part / sum(parts) for part in parts]
    found = composed([says(3, 4)] * len(parts), weights)(PICTURE, TIME, None)
    torch.testing.assert_close(found, says(3, 4)(PICTURE, TIME))


@settings(max_examples=25, deadline=None)
@given(a=st.floats(0.1, 0.9), b=st.floats(0.1, 0.9))
def test_sums_of_sums(a, b):
    one, two, three = (says(seed, 4) for seed in range(3))
    nested = composed([composed([one, two], [a, 1 - a]), three], [b, 1 - b])
    flat = composed([one, two, three], [a * b, (1 - a) * b, 1 - b])
    torch.testing.assert_close(nested(PICTURE, TIME, None), flat(PICTURE, TIME, None))


def test_ruled_out_by_one_is_ruled_out():
    found = composed([says(0, hidden=[2]), says(1, hidden=[4]), says(2, hidden=[5])], [1.0, 0.5, -0.5])
    logits = found(CANVAS, TIME, None)
    assert logits[..., [2, 4]].isneginf().all() and logits[..., [0, 1, 3, 5, 6]].isfinite().all()


BAD = {
    "none": ([], [], "weights must be as many as the denoisers, at least 1, got 0, 0"),
    "count": ([says(0)], [0.5, 0.5], "weights must be as many as the denoisers"),
    "sum": ([says(0), says(1)], [0.5, 0.6], "weights must sum to 1"),
    "nan": ([says(0)], [math.nan], "weights must be finite numbers, got nan"),
    "bool": ([says(0)], [True], "weights must be finite numbers, got True"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    denoisers, weights, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        composed(denoisers, weights)
