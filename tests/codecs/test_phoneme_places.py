"""Laws of where phonemes are on the clock of a clip."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.codecs.audio_codec import AudioCodec
from hf_unified_diffusion.codecs.durations import TOKENS_PER_SECOND, Durations, phoneme_places
from hf_unified_diffusion.codecs.phonemes import SYMBOLS, pronounce
from hf_unified_diffusion.codecs.speech_layout import SpeechRow, lay_out
from hf_unified_diffusion.codecs.symbol_times import BEFORE_A_PAUSE, symbol_seconds
from hf_unified_diffusion.pipelines.joint_layout import JointLayout


@given(symbols=st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=60), tokens=st.integers(4, 200))
@settings(max_examples=60, deadline=None)
def test_places_rise_within_the_clip_and_fill_it(symbols, tokens):
    places, ends = phoneme_places(symbols, tokens), Durations().ends(symbols, tokens / TOKENS_PER_SECOND)
    assert len(places) == len(symbols) and list(places) == sorted(places)
    assert places[0] > 0 and places[-1] <= tokens + 1e-6
    assert ends[-1] == pytest.approx(tokens / TOKENS_PER_SECOND)


def test_a_place_is_the_middle_between_the_ends_and_alike_sounds_are_spread_evenly():
    symbols = pronounce("Hello, world!").symbols
    ends = Durations().ends(symbols, 1.0)
    places = [(a + b) / 2 * TOKENS_PER_SECOND for a, b in itertools.pairwise([0.0, *ends])]
    assert list(phoneme_places(symbols, 20)) == pytest.approx(places)
    alike = [b - a for a, b in itertools.pairwise(Durations().ends(["p"] * 9, 1.0))]  # all but the first
    assert alike[:5] == pytest.approx([alike[0]] * 5)
    assert phoneme_places((), 20) == ()


@pytest.mark.parametrize(("short", "long"), [("kæt ɪt", "kæt, ɪt"), ("kæt ɪt", "kæt. ɪt")])
def test_sounds_are_longer_before_a_pause(short, long):
    before, after = symbol_seconds(tuple(short)), symbol_seconds(tuple(long))
    assert after[0] == before[0] + BEFORE_A_PAUSE["pbtdkɡɾʔʧʤ"][2]
    assert after[1] > before[1] and after[2] > before[2]
    assert after[-2:] == before[-2:]  # the end is a pause in both


def test_the_clock_is_that_of_the_sound():
    assert AudioCodec.tokens_per_second == TOKENS_PER_SECOND


def test_punctuation_at_the_end_takes_no_time_of_the_clip():
    said, ended = phoneme_places(tuple("kæt"), 20), phoneme_places(tuple("kæt."), 20)
    assert ended[:3] == pytest.approx(said, abs=0.15)  # and the end is as much of a pause


@pytest.mark.parametrize("tokens", [4, 37])
def test_speech_and_joint_requests_place_an_utterance_alike(tokens):
    symbols = pronounce("Two red fish.").symbols
    ids, places = list(range(len(symbols))), phoneme_places(symbols, tokens)
    spoken = lay_out([SpeechRow(ids, tokens, places)], bos_token_id=0).contexts[-1]
    joint = JointLayout([[0]], tokens, [ids], [places], {}, None, guided=False, pad_token_id=0).contexts()[-1]
    assert torch.equal(spoken.positions, joint.positions) and torch.equal(spoken.values, joint.values)
