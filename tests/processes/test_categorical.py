"""Tokens are drawn from exactly the distribution asked for, in float64, row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from hf_unified_diffusion.processes import draw_tokens, gumbel_argmax, shape_logits, spawn_generators
from hf_unified_diffusion.processes.randomness import ragged_uniform
from tests.chi_square import fits


@pytest.mark.parametrize("vocab", [2, 3, 10, 17, 101])
def test_draws_have_the_given_probabilities(vocab):
    generator = Generator().manual_seed(vocab)
    probs = torch.randn(vocab, generator=generator).mul(1.5).softmax(-1)
    tokens = draw_tokens(probs.expand(50_000, -1), [50_000], generator)
    assert fits(tokens, probs)


def test_logits_and_probabilities_draw_the_same():
    logits = torch.randn(6, 40, generator=Generator().manual_seed(0))
    rows = torch.tensor([0, 0, 1, 2, 2, 2])
    drawn = gumbel_argmax(logits, rows, 3, spawn_generators(1, 3))
    torch.testing.assert_close(drawn, draw_tokens(logits.softmax(-1), [2, 1, 3], spawn_generators(1, 3)))


@given(st.integers(1, 60), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_impossible_tokens_are_never_drawn(vocab, seed):
    generator = Generator().manual_seed(seed)
    possible = torch.rand(64, vocab, generator=generator) < 0.3
    possible[:, seed % vocab] = True
    logits = torch.randn(64, vocab, generator=generator).masked_fill(~possible, -torch.inf)
    tokens = gumbel_argmax(logits, torch.zeros(64, dtype=torch.int64), 1, generator)
    assert possible.gather(1, tokens[:, None]).all()


@pytest.mark.parametrize("generator", [Generator().manual_seed(0), spawn_generators(0, 1)], ids=["batch", "rows"])
def test_noise_is_finer_than_float32(generator):
    noise = ragged_uniform([4096], generator, torch.device("cpu"))
    assert noise.dtype == torch.float64
    assert (noise != noise.float().double()).float().mean() > 0.99


def test_a_row_draws_the_same_in_any_company():
    logits = torch.randn(9, 30, generator=Generator().manual_seed(5))
    together = draw_tokens(logits.softmax(-1), [4, 0, 5], spawn_generators(7, 3))
    alone = draw_tokens(logits[4:].softmax(-1), [5], spawn_generators(7, 1, first=2))
    assert torch.equal(together[4:], alone)


def test_shaping_with_neutral_settings_keeps_the_distribution():
    logits = torch.randn(5, 50, generator=Generator().manual_seed(6))
    torch.testing.assert_close(shape_logits(logits, 1.0).softmax(-1), logits.softmax(-1))


@given(st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_top_k_keeps_the_k_best(top_k, seed):
    logits = torch.randn(4, 30, generator=Generator().manual_seed(seed))
    kept = shape_logits(logits, 1.0, top_k=top_k).isfinite()
    assert (kept.sum(-1) == min(top_k, 30)).all()
    least_kept = logits.masked_fill(~kept, torch.inf).amin(-1)
    assert (logits.masked_fill(kept, -torch.inf).amax(-1) <= least_kept).all()


@given(st.floats(0.01, 0.999), st.floats(0.1, 8), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p, spread, seed):
    logits = torch.randn(4, 300, generator=Generator().manual_seed(seed)) * spread
    probs = logits.softmax(-1)
    kept = shape_logits(logits, 1.0, top_p=top_p).isfinite()
    mass = torch.where(kept, probs, 0).sum(-1)
    least_kept = probs.masked_fill(~kept, torch.inf).amin(-1)
    assert (mass >= top_p - 1e-5).all()
    assert (mass - least_kept < top_p + 1e-5).all()
    assert (probs.masked_fill(kept, 0).amax(-1) <= least_kept).all()


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-3])
def test_a_tiny_temperature_is_the_argmax(temperature):
    logits = torch.randn(20, 50, generator=Generator().manual_seed(8)) * 100
    shaped = shape_logits(logits, temperature)
    assert not shaped.isnan().any()
    assert torch.equal(draw_tokens(shaped.softmax(-1), [20], Generator().manual_seed(0)), logits.argmax(-1))


def test_a_huge_temperature_is_uniform_over_what_is_possible():
    logits = torch.randn(1, 8, generator=Generator().manual_seed(9))
    logits[0, 3] = -torch.inf
    probs = shape_logits(logits, 1e300).softmax(-1)[0]
    torch.testing.assert_close(probs, torch.full((8,), 1 / 7).index_fill(0, torch.tensor([3]), 0.0))
