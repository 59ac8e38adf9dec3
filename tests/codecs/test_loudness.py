"""Speech is brought to one level, whatever pauses and silence are around it."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.codecs.loudness import LEVEL_DB, level_db, levelled, spoken_span
from tests.codecs.sounds import vowel

SOUND = vowel(seconds=0.5)[0]


@given(gain_db=st.floats(-20, 10))
@settings(max_examples=10, deadline=None)
def test_loudness_of_what_comes_does_not_matter(gain_db):
    louder = levelled(SOUND * 10 ** (gain_db / 20))
    torch.testing.assert_close(louder, levelled(SOUND), rtol=1e-3, atol=1e-5)
    assert abs(level_db(louder) - LEVEL_DB) < 0.01


def test_level_is_of_what_is_spoken():
    with_pause = torch.cat([SOUND, torch.zeros(48_000)])
    assert abs(level_db(with_pause) - level_db(SOUND)) < 0.2
    torch.testing.assert_close(levelled(torch.zeros(4800)), torch.zeros(4800))
    spike = torch.zeros(24_000)
    spike[100] = 0.5
    assert levelled(spike).abs().max() <= 0.951


def test_silence_around_is_found():
    silence = torch.zeros(12_000)
    start, end = spoken_span(torch.cat([silence, SOUND, silence]))
    assert 10_000 <= start <= 12_000 and 24_000 - 2400 <= end <= 12_000 + len(SOUND) + 1680
    assert spoken_span(torch.zeros(5000)) == (0, 5000)
