"""Energies of texts against enumeration: what is expected of a canvas of independent tokens, by the definition."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.conditioning.energies_text import (
    CausalLikelihood,
    ForbiddenWords,
    Length,
    RequiredWords,
    Spelling,
    WrittenText,
    lacks,
)
from hf_unified_diffusion.conditioning.energy import with_token_energy

PIECES = (b"a", b"b", b"ab", b"ba", b"cab", None)
MASK = 6


def count(text, word):
    return sum(text.startswith(word, place) for place in range(len(text)))


def probabilities(seed, length):
    return torch.rand(1, length, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


@settings(max_examples=30, deadline=None)
@given(
    word=st.sampled_from([b"a", b"ab", b"bca", b"abca", b"bab"]),
    begun=st.sampled_from([b"", b"ca", b"ab", b"bc"]),
    seed=st.integers(0, 9),
)
def test_expected_count_equals_enumeration(word, begun, seed):
    """Occurrences that begin in what was written and end in the canvas count too; those before it do not."""
    length, probs, expected = 3, probabilities(seed, 3), 0.0
    for canvas in itertools.product(range(len(PIECES)), repeat=length):
        pieces = [PIECES[token] or b"|" for token in canvas]  # a special token spells nothing
        new = count(begun + b"".join(pieces), word) - count(begun, word)
        expected += new * math.prod(float(probs[0, i, token]) for i, token in enumerate(canvas))
    found = Spelling(PIECES, word).expected_count(probs, begun)
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_a_place_for_a_word_lacks_what_is_not_there_and_ends_before():
    probs = torch.zeros(1, 4, 6)
    probs[0, [0, 1, 2, 3], [0, 1, 0, 5]] = 1.0
    before = probs[..., [5]].sum(-1).cumsum(1)
    assert lacks(probs, [0, 1], before).tolist() == [[0.0, 2.0, 2.0]]


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.1, 20), seed=st.integers(0, 9))
def test_logits_go_down_what_each_token_adds(scale, seed):
    """The energy that a linear wish takes is the price of its tokens, at masks; the odds of others stay."""
    logits = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(seed))
    logits[..., MASK] = -torch.inf
    canvas = torch.tensor([[MASK, 2, MASK, MASK]])
    price = torch.tensor([0.0, 1.0, 0.0, 0.5, 0.0, 0.0, 0.0])
    found = with_token_energy(lambda *_: logits, lambda p: (p @ price).sum(1), scale, MASK)(canvas, torch.ones(1), None)
    torch.testing.assert_close(found, logits - scale * price)


def test_scale_zero_is_the_denoiser_itself():
    def denoiser(*_):
        return torch.zeros(1, 4, 7)

    assert with_token_energy(denoiser, lambda p: p.sum((1, 2)), 0.0, MASK) is denoiser


def written(completion, ids=(), nats=1.0):
    return WrittenText(completion, tuple(ids), lambda: nats, lambda: 0.0)


def test_what_is_accepted():
    assert ForbiddenWords(["cat"]).accepts(written("a dog")) and not ForbiddenWords(["cat"]).accepts(written("concat"))
    assert RequiredWords(["cat", "dog"]).of_text(written("cats")) == 1 and not RequiredWords(["x"]).accepts(written(""))
    assert [Length(2, 3).of_text(written("", range(n))) for n in range(6)] == [2, 1, 0, 0, 1, 2]
    assert CausalLikelihood(most_nats=1.5).accepts(written("", [1], 1.5))
    assert not CausalLikelihood(most_nats=1.5).accepts(written("", [1], 1.6))


@pytest.mark.parametrize("words", ["cat", [], [""], [3]])
@pytest.mark.parametrize("kind", [ForbiddenWords, RequiredWords])
def test_bad_words(kind, words):
    with pytest.raises(ValueError, match="words must be a list of at least one string that is not empty, got "):
        kind(words)


@pytest.mark.parametrize("bounds", [(-1, 3), (4, 3), (1.5, 3), (True, 3)])
def test_bad_lengths(bounds):
    with pytest.raises(ValueError, match="fewest and most must be integers with 0 <= fewest <= most, got "):
        Length(*bounds)
