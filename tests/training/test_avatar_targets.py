"""Targets of the face: closures are reached, the jaw follows the sound, and a seed repeats."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.codecs.avatar_codec import COEFFICIENTS, AvatarCodec
from hf_unified_diffusion.codecs.phonemes import SYMBOLS, pronounce
from hf_unified_diffusion.codecs.visemes import CLOSED, timed_visemes
from hf_unified_diffusion.training.avatar_targets import LATE_S, avatar_targets, heard_ends, row_face, smoothed

JAW, CLOSE, BLINK = (COEFFICIENTS.index(name) for name in ("jawOpen", "mouthClose", "eyeBlinkLeft"))
WAVE = np.sin(np.arange(24000 * 3) * 0.05).astype(np.float32)


def said(text, seconds_each=0.09):
    symbols = pronounce(text).symbols
    ends = (np.arange(1, len(symbols) + 1) * seconds_each).tolist()
    return symbols, ends, int(np.ceil(ends[-1] * 20))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SYMBOLS), st.floats(0.02, 0.3)), min_size=1, max_size=15), st.integers(0, 2**32)
)
def test_targets_are_coefficients_and_repeat(spoken, seed):
    symbols, durations = zip(*spoken, strict=True)
    ends = np.cumsum(durations).tolist()
    count = int(np.ceil(ends[-1] * 20)) + 3
    track = avatar_targets(symbols, ends, count, seed=seed)
    assert track.shape == (count, 52) and track.dtype == np.float32
    assert track.min() >= 0 and track.max() <= 1
    assert np.array_equal(track, avatar_targets(symbols, ends, count, seed=seed))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.floats(0.04, 0.2))
def test_every_closure_is_reached(start, length):
    """Wherever the P falls on the grid of tokens, one token has closed lips."""
    begin = 0.3 + start / 200
    ends = [begin, begin + length, begin + length + 0.4]
    track = avatar_targets(["ɑ", "p", "ɑ"], ends, 24, waveform=WAVE, seed=0)
    centres = (np.arange(24) + 0.5) / 20
    middle = begin + length / 2
    nearest = np.abs(centres - middle).argmin()
    assert (track[:, JAW] - track[:, CLOSE])[nearest] < 0.02
    assert track[2, JAW] > 0.4


def test_the_kernel_keeps_the_middle_of_an_edge_and_all_of_a_constant():
    step = (np.arange(400) >= 200).astype(float)
    curve = smoothed(step, 120)
    assert abs(np.abs(curve - 0.5).argmin() - 200) <= 1 and curve[170] == 0 and curve[230] == pytest.approx(1)
    assert np.allclose(smoothed(np.full(100, 0.3), 80), 0.3)


def test_the_jaw_opens_further_where_it_is_loud():
    symbols, ends = ["ɑ", "ɑ"], [1.5, 3.0]
    fading = WAVE * np.linspace(1, 0.05, len(WAVE), dtype=np.float32)
    jaw = avatar_targets(symbols, ends, 60, waveform=fading, seed=None)[:, JAW]
    assert np.corrcoef(jaw, -np.arange(60))[0, 1] > 0.9
    still = avatar_targets(symbols, ends, 60, seed=None)
    assert np.ptp(still[:, JAW]) < 1e-6


def test_blinks_are_of_the_seed_and_the_mouth_is_not():
    symbols, ends, count = said("Peter piper picked a peck of pickled peppers, and my mother made a map of it all.")
    first, second, still = (avatar_targets(symbols, ends, count, seed=seed) for seed in (0, 1, None))
    blinks = [(np.diff((track[:, BLINK] > 0.9).astype(int)) == 1).sum() for track in (first, second)]
    assert all(count / 20 / 6 - 1 <= number <= count / 20 / 2 + 1 for number in blinks)
    assert not np.array_equal(first[:, BLINK], second[:, BLINK]) and not still[:, BLINK].any()
    mouth = [i for i, name in enumerate(COEFFICIENTS) if name.startswith(("jaw", "mouth"))]
    assert np.array_equal(first[:, mouth], second[:, mouth])


def test_after_the_last_phoneme_the_mouth_rests():
    track = avatar_targets(["m", "ɑ"], [0.1, 0.4], 20, seed=None)
    assert not track[10:].any() and track[4:7, JAW].min() > 0.4


def test_closures_are_where_the_lips_meet_in_what_is_said():
    symbols, ends, count = said("Baby, my map.")
    track = avatar_targets(symbols, ends, count, seed=0)
    opening = track[:, JAW] - track[:, CLOSE]
    closures = [v for v in timed_visemes(symbols, ends) if v.label == CLOSED]
    assert len(closures) == 5
    for viseme in closures:
        assert opening[int((viseme.start_s + viseme.end_s) / 2 * 20)] < 0.03


def test_tokens_have_about_zero_mean_and_unit_variance():
    texts = ["The history of the bicycle begins in Baden.", "Do you hear me? My mother's boat moved off.", "Five, two!"]
    tracks = [avatar_targets(*said(text, 0.08), seed=0) for text in texts]
    tokens = AvatarCodec().encode(torch.from_numpy(np.concatenate(tracks))[None])[0]
    moving = [COEFFICIENTS.index(name) for name in ("jawOpen", "mouthLowerDownLeft", "mouthStretchRight")]
    assert tokens[:, moving].mean(dim=0).abs().max() < 0.5
    assert ((tokens[:, moving].std(dim=0) > 0.5) & (tokens[:, moving].std(dim=0) < 2)).all()


def test_a_row_of_the_data_has_its_face():
    symbols, ends, count = said("Peter may.")
    row = {"phonemes": symbols, "phoneme_ends_s": ends, "text": "Peter may.", "voice": "a", "source": "kokoro"}
    sound = WAVE[: count * 1200]
    face = row_face(row, sound, count)
    assert np.array_equal(face, row_face(dict(row), sound, count))
    other = row_face({**row, "voice": "b"}, sound, count)
    assert not np.array_equal(face, other) and np.array_equal(face[:, JAW], other[:, JAW])
    earlier = heard_ends(ends, "kokoro")
    assert np.allclose(np.array(ends[1:]) - earlier[1:], LATE_S["kokoro"]) and heard_ends(ends, "other") == ends
    assert np.array_equal(face[:, JAW], avatar_targets(symbols, earlier, count, sound, seed=None)[:, JAW])


def test_before_and_after_the_sound_the_mouth_rests():
    sound = np.concatenate([np.zeros(12000), WAVE[:24000], np.zeros(12000)]).astype(np.float32)
    face = avatar_targets(["ɑ"], [2.0], 40, sound, seed=None)
    assert not face[:7].any() and not face[-7:].any() and face[12:28, JAW].min() > 0.5


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="num_tokens must be at least 1, got 0"):
        avatar_targets(["m"], [0.1], 0)
    with pytest.raises(ValueError, match="phonemes must be symbols of Kokoro"):
        avatar_targets(["语"], [0.1], 4)
