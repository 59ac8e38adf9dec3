"""Sounds of every kind come out as 24 kHz mono at one level, or are refused."""

import numpy as np
import pytest
import soundfile
import torch

from hf_unified_diffusion.codecs.durations import NAMES, SECONDS, Durations, aligned, count
from hf_unified_diffusion.codecs.loudness import LEVEL_DB, level_db
from hf_unified_diffusion.codecs.phonemes import pronounce
from hf_unified_diffusion.codecs.sounds import read_sound
from hf_unified_diffusion.codecs.speech_checks import check_speech, highest_overlap, longest_pause_s


def tone(seconds=1.0, rate=24_000, hz=440.0, level=0.3):
    return (level * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_file_and_samples_give_the_same(tmp_path):
    path, stereo = tmp_path / "tone.wav", np.stack([tone(), 0.5 * tone()], axis=1)
    soundfile.write(path, stereo, 24_000, subtype="FLOAT")
    found = read_sound("it", path)
    torch.testing.assert_close(found, read_sound("it", stereo))
    torch.testing.assert_close(found, read_sound("it", stereo.T))
    torch.testing.assert_close(found, read_sound("it", torch.from_numpy(tone() * 0.75)))
    assert abs(level_db(found) - LEVEL_DB) < 0.1


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_any_rate_comes_to_24_khz(rate):
    found = read_sound("it", tone(rate=rate), rate)
    assert abs(len(found) - 24_000) <= 2 * 480
    spectrum = torch.fft.rfft(found).abs()
    assert abs(float(spectrum.argmax()) * 24_000 / len(found) - 440) < 2


def test_integers_are_read_on_their_scale():
    whole = (tone() * 32768).astype(np.int16)
    torch.testing.assert_close(read_sound("it", whole), read_sound("it", tone()), atol=2e-4, rtol=0)


def test_silence_around_is_cut_and_clipping_is_told():
    quiet = np.zeros(24_000, np.float32)
    assert abs(len(read_sound("it", np.concatenate([quiet, tone(), quiet]))) / 24_000 - 1.1) < 0.05
    with pytest.warns(UserWarning, match="clipped"):
        read_sound("it", np.clip(5 * tone(level=0.9), -1, 1))


@pytest.mark.parametrize(
    ("sound", "rate", "rule"),
    [
        (np.zeros(24_000, np.float32), None, "silent"),
        (np.zeros(0, np.float32), None, "at least one sample"),
        (np.array([np.nan] * 100, np.float32), None, "finite"),
        (2 * tone(level=0.9), None, r"in \[-1, 1\]"),
        (tone(31), None, "at most 30 s"),
        (tone(), 1000, "8000..192000"),
        (tone().astype(np.uint8), None, "float, int16 or int32"),
        (np.zeros((2, 3, 4), np.float32), None, "samples"),
        (3, None, "got int"),
    ],
)
def test_what_is_no_speech_is_refused(sound, rate, rule):
    with pytest.raises(ValueError, match=rule):
        read_sound("it", sound, rate)


def test_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "text.wav"
    path.write_text("no sound")
    with pytest.raises(ValueError, match="libsndfile"):
        read_sound("it", path)
    with pytest.raises(ValueError, match="no file"):
        read_sound("it", tmp_path / "nowhere.wav")
    with pytest.raises(ValueError, match="left out"):
        read_sound("it", path, 24_000)


def test_a_fit_finds_the_seconds_that_made_the_lengths():
    texts = ["A test, of words.", "Hello there!", "The boy saw a huge judge.", "Why now? Go home; rest.", "Thin ash."]
    texts += [f"{a} {b}{c}" for a in ("Big", "Small", "Cheap") for b in ("dogs run", "fish swim") for c in ".,!"]
    symbols = [pronounce(text).symbols for text in texts]
    true = Durations({name: 0.01 * (k + 1) for k, name in enumerate(NAMES)})
    fitted = Durations.fit(symbols, [true.of(each) for each in symbols])
    for each in symbols:
        assert fitted.of(each) == pytest.approx(true.of(each), abs=1e-6)
    shrinking = Durations.fit(symbols, [10 - true.of(each) for each in symbols])
    assert min(shrinking.seconds.values()) >= 0


def test_durations_scale_with_rate_and_ends_rise_to_the_length():
    spoken, durations = pronounce("Hello, my world."), Durations()
    assert durations.of(spoken.symbols, rate=2.0) == pytest.approx(durations.of(spoken.symbols) / 2)
    assert durations.rate(spoken.symbols, durations.of(spoken.symbols) / 3) == pytest.approx(3)
    ends = durations.ends(spoken.symbols, 2.0)
    assert len(ends) == len(spoken.symbols) and ends == sorted(ends) and ends[0] > 0 and ends[-1] <= 2.0
    words = aligned(spoken, ends).words
    assert [word.label for word in words] == ["Hello", "my", "world"]
    assert count(spoken.symbols).sum() == len(spoken.symbols)  # the beginning more, the full stop at the end less


@pytest.mark.parametrize("wrong", [{}, {**SECONDS, "vowel": -1.0}, {**SECONDS, "vowel": float("nan")}])
def test_seconds_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="seconds must be"):
        Durations(wrong)
    with pytest.raises(ValueError, match="a fit needs"):
        Durations.fit([["a"]], [1.0])


def test_checks_find_pauses_silent_words_and_the_reference_again():
    spoken = pronounce("one two")
    sound = torch.from_numpy(np.concatenate([tone(0.5), np.zeros(12_000, np.float32), tone(0.5)]))
    assert longest_pause_s(sound) == pytest.approx(0.5, abs=0.04)
    alignment = aligned(spoken, Durations().ends(spoken.symbols, len(sound) / 24_000))
    assert check_speech(sound, alignment).silent_words == 0
    half = torch.cat([sound[:12_000], torch.zeros(24_000)])
    assert check_speech(half, alignment).silent_words == 1
    tokens = torch.randn(40, 400, generator=torch.Generator().manual_seed(0))
    assert highest_overlap(tokens[5:25], tokens) == pytest.approx(1.0, abs=1e-5)
    assert highest_overlap(torch.randn(20, 400, generator=torch.Generator().manual_seed(1)), tokens) < 0.2
    assert highest_overlap(tokens[:3], tokens) is None
