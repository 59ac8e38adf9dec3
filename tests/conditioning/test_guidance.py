"""Laws of denoisers made from denoisers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_unified_diffusion.conditioning.guidance import (
    beginning_with,
    check_interval,
    guided,
    guided_by_parts,
    guided_within,
    turned,
    without_tokens,
)

TIME = torch.ones(2)
CANVAS = torch.zeros(2, 3, dtype=torch.int64)


def constant(seed, hidden=()):
    """A denoiser with fixed logits, some of them ruled out."""
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits[..., list(hidden)] = -torch.inf
    return lambda x_t, t, condition=None: logits


def log_probs(denoiser):
    return denoiser(CANVAS, TIME, None).double().log_softmax(-1)


def test_scale_one_is_the_denoiser_itself():
    denoiser = constant(0)
    assert guided(denoiser, constant(1), 1.0) is denoiser


def test_scale_zero_is_the_null():
    torch.testing.assert_close(
        log_probs(guided(constant(0), constant(1), 0.0)), log_probs(constant(1)), atol=1e-5, rtol=0
    )


@given(scale=st.floats(0, 10))
def test_log_odds_are_mixed_linearly(scale):
    """log p_a - log p_b moves on a line through null (0) and denoiser (1), whatever constants the logits carry."""
    mixed, clean, null = (log_probs(d) for d in (guided(constant(0), constant(1), scale), constant(0), constant(1)))
    odds, odds_clean, odds_null = (x[..., 1:] - x[..., :1] for x in (mixed, clean, null))
    torch.testing.assert_close(odds, odds_null + scale * (odds_clean - odds_null), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_ruled_out_tokens_stay_ruled_out(scale):
    logits = guided(constant(0, hidden=[6]), constant(1, hidden=[6]), scale)(CANVAS, TIME, None)
    assert logits[..., 6].isneginf().all() and logits[..., :6].isfinite().all()


@given(eta=st.floats(0, 1), seed=st.integers(0, 99))
def test_what_guidance_adds_is_parted_along_and_across_the_estimate(eta, seed):
    """Of the part along each token's estimate so much is left as eta says, the part across it stays."""
    clean, pushed = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit = clean / clean.norm(dim=-1, keepdim=True)
    (before, after) = (each - clean for each in (pushed, turned(clean, pushed, eta)))
    along_before, along_after = ((each * unit).sum(dim=-1, keepdim=True) for each in (before, after))
    torch.testing.assert_close(along_after, eta * along_before)
    torch.testing.assert_close(after - along_after * unit, before - along_before * unit)
    assert torch.equal(turned(clean, pushed, 1.0), pushed)
    assert torch.equal(
        turned(torch.zeros(2, 3, 5), torch.ones(2, 3, 5), 0.0), torch.ones(2, 3, 5)
    )  # nothing to stretch


@pytest.mark.parametrize("scales", [(3.0, 3.0), (1.0, 2.0), (2.0, 0.0), (2.0, 3.0)])
def test_guidance_that_only_turns_keeps_what_it_is_given_along_the_estimate(scales):
    all_of_it, part, null = constant(0), constant(1), constant(2)
    plain = guided_by_parts(all_of_it, part, null, *scales)(CANVAS, TIME, None)
    found = guided_by_parts(all_of_it, part, null, *scales, eta=0.0)(CANVAS, TIME, None)
    clean = (all_of_it if scales[1] else part)(CANVAS, TIME, None).float()
    torch.testing.assert_close(found, turned(clean, plain, 0.0))
    assert not torch.allclose(found, plain, atol=1e-2)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan"), True, "0"])
def test_a_share_that_is_none_is_refused(eta):
    for make in (
        lambda: guided(constant(0), constant(1), 2.0, eta),
        lambda: guided_by_parts(constant(0), constant(1), constant(2), 2.0, 3.0, eta),
    ):
        with pytest.raises(ValueError, match=r"guidance_eta must be a number in \[0, 1\], got "):
            make()


def test_null_sees_no_condition():
    seen = {}

    def asks(name):
        def denoise(x_t, t, condition):
            seen[name] = condition
            return torch.zeros(2, 3, 7)

        return denoise

    guided(asks("clean"), asks("null"), 2.0)(CANVAS, TIME, "a condition")
    assert seen == {"clean": "a condition", "null": None}


@given(t=st.floats(0.01, 1), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_guidance_acts_between_two_noise_levels(t, ends):
    asked = []

    def null(x_t, t, condition):
        asked.append(float(t.max()))
        return constant(1)(x_t, t)

    steered, denoiser = guided(constant(0), null, 3.0), constant(0)
    time = torch.full((2,), t, dtype=torch.float64)
    found = guided_within(tuple(ends), steered, denoiser)(CANVAS, time)
    within = ends[0] <= t <= ends[1]
    assert len(asked) == within  # outside, the null costs nothing
    assert torch.equal(found, steered(CANVAS, time) if within else denoiser(CANVAS, time))


def test_guidance_at_all_levels_is_guidance():
    steered = guided(constant(0), constant(1), 3.0)
    assert guided_within((0.0, 1.0), steered, constant(0)) is steered


@pytest.mark.parametrize("interval", [(0.5, 0.4), (-0.1, 1), (0, 1.1), (0, math.nan), (0,), 0.5, "01", (True, 1), None])
def test_bad_intervals(interval):
    with pytest.raises(ValueError, match="guidance_interval must be two numbers with 0 <= low <= high <= 1, got "):
        check_interval(interval)


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf, "2", True, None])
def test_bad_scales(scale):
    with pytest.raises(ValueError, match="guidance_scale must be a finite number of at least 0, got "):
        guided(constant(0), constant(1), scale)


def test_without_tokens_keeps_the_odds_of_the_others():
    kept = [1, 2, 4, 5, 6]
    logits = without_tokens(constant(0), [0, 3])(CANVAS, TIME, None)
    assert logits[..., [0, 3]].isneginf().all()
    assert torch.equal(logits[..., kept], constant(0)(CANVAS, TIME)[..., kept])


def test_without_nothing_is_the_denoiser_itself():
    denoiser = constant(0)
    assert without_tokens(denoiser, []) is denoiser


def test_beginnings_bind_the_first_token_of_their_row_alone():
    allowed = torch.tensor([[1, 0, 1, 0, 0, 0, 0], [1] * 7], dtype=torch.bool)
    logits = beginning_with(constant(0), allowed)(CANVAS, TIME, None)
    assert logits[0, 0].isfinite().tolist() == allowed[0].tolist()
    expected = constant(0)(CANVAS, TIME)
    assert torch.equal(logits[1], expected[1]) and torch.equal(logits[:, 1:], expected[:, 1:])
    assert torch.equal(logits[0, 0][allowed[0]], expected[0, 0][allowed[0]])
