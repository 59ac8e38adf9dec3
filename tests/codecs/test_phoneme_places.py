"""Laws of where phonemes are on the clock of a clip."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.codecs.durations import SECONDS, TOKENS_PER_SECOND, Durations, phoneme_places
from hf_unified_diffusion.codecs.phonemes import SYMBOLS, pronounce


@given(symbols=st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=60), tokens=st.integers(4, 200))
@settings(max_examples=60, deadline=None)
def test_places_rise_within_the_clip_and_fill_it_but_for_its_edges(symbols, tokens):
    places = phoneme_places(symbols, tokens)
    edge = min(SECONDS["beginning"] / 2 * TOKENS_PER_SECOND, tokens / 4)
    assert len(places) == len(symbols) and list(places) == sorted(places)
    assert edge <= places[0] and places[-1] <= tokens - edge + 1e-6


def test_a_place_is_the_middle_between_the_ends_and_alike_sounds_are_spread_evenly():
    symbols = pronounce("Hello, world!").symbols
    ends = Durations().ends(symbols, 1.0)
    middles = [(a + b) / 2 * TOKENS_PER_SECOND for a, b in itertools.pairwise(ends)]
    assert list(phoneme_places(symbols, 20))[1:] == pytest.approx(middles)
    even = phoneme_places(["p"] * 5, 20)
    assert {round(b - a, 6) for a, b in itertools.pairwise(even)} == {round((20 - 2 * 1.42) / 5, 6)}
    assert phoneme_places((), 20) == ()
