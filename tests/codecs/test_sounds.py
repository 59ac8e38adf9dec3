"""One door for sounds: every way in gives the same samples; what is no speech is refused with its rule."""

import io
import wave

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.codecs.loudness import LEVEL_DB, level_db, levelled, spoken_span
from hf_unified_diffusion.codecs.mel import log_mel
from hf_unified_diffusion.codecs.sounds import read_sound
from tests.codecs.sounds import vowel

SOUND = vowel(seconds=0.5)[0]


def encoded(samples: np.ndarray, rate: int, form: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form, subtype=subtype)
    return stream.getvalue()


def test_every_way_in_gives_the_same_sound(tmp_path):
    wanted = read_sound("sound", SOUND, 24_000)
    assert wanted.dtype == torch.float32 and wanted.shape == SOUND.shape
    integers = (SOUND * 32767).round().to(torch.int16)
    content = encoded(integers.numpy(), 24_000)
    (tmp_path / "sound.wav").write_bytes(content)
    ways = [
        (SOUND.numpy(), 24_000),
        (SOUND.double(), 24_000),
        (torch.stack([SOUND, SOUND]), 24_000),
        (integers, 24_000),
        ((SOUND.numpy() * 127 + 128).round().astype(np.uint8), 24_000),
        (content, None),
        (encoded(SOUND.numpy(), 24_000, "FLAC"), None),
        (tmp_path / "sound.wav", None),
        (str(tmp_path / "sound.wav"), None),
    ]
    for given_sound, rate in ways:
        torch.testing.assert_close(read_sound("sound", given_sound, rate), wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(rate):
    t = np.arange(rate) / rate
    sine = 0.3 * np.sin(2 * np.pi * 1000 * t).astype(np.float32)
    sound = read_sound("sound", sine, rate)
    assert abs(len(sound) - 24_000) <= 1
    assert torch.fft.rfft(sound[:24_000]).abs().argmax() == 1000
    torch.testing.assert_close(
        sound[5000:19000].abs().max(), torch.tensor(2**0.5 * 10 ** (LEVEL_DB / 20)), rtol=0.01, atol=0
    )


def test_channels_are_averaged():
    left, right = SOUND, vowel(seconds=0.5, pitch_hz=200)[0]
    mixed = read_sound("sound", torch.stack([left, right]), 24_000)
    torch.testing.assert_close(mixed, read_sound("sound", (left + right) / 2, 24_000))


@given(gain_db=st.floats(-20, 10))
@settings(max_examples=10, deadline=None)
def test_loudness_of_what_comes_does_not_matter(gain_db):
    louder = read_sound("sound", SOUND * 10 ** (gain_db / 20), 24_000)
    torch.testing.assert_close(louder, read_sound("sound", SOUND, 24_000), rtol=1e-3, atol=1e-5)
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


def test_light_clipping_is_taken():
    clipped = (SOUND / SOUND.abs().max() * 1.3).clamp(-1, 1)
    assert log_mel(read_sound("sound", clipped, 24_000)[None]).isfinite().all()


def endless_header() -> bytes:
    """A WAV of 10 samples that claims to be hours long."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes(b"\0" * 20)
    content = bytearray(stream.getvalue())
    content[40:44] = (2**31).to_bytes(4, "little")
    return bytes(content)


NAN = SOUND.clone()
NAN[7] = torch.nan


@pytest.mark.parametrize(
    ("given_sound", "rate", "rule"),
    [
        (torch.zeros(24_000), 24_000, "silence"),
        (1e-5 * SOUND, 24_000, "silence"),
        (torch.zeros(0), 24_000, "must last"),
        (SOUND[:100], 24_000, "must last"),
        (torch.zeros(3600 * 8_000), 8_000, "must last"),
        (encoded(np.zeros(61 * 8_000, np.int16), 8_000), None, "must last"),
        (endless_header(), None, "must last"),
        (encoded(np.zeros(0, np.int16), 24_000), None, "must last"),
        (NAN, 24_000, "finite"),
        (SOUND * 1000, 24_000, r"\[-1, 1\]"),
        (torch.sign(SOUND), 24_000, "clipped"),
        (SOUND, 4_000, "sampling rate"),
        (SOUND, None, "sampling rate"),
        (SOUND, 24_000.0, "sampling rate"),
        (torch.zeros(24_000, 2), 24_000, "channels"),
        (torch.zeros(1, 1, 100), 24_000, "shape"),
        (torch.zeros(9, dtype=torch.bool), 24_000, "floats or integers"),
        ([0.1] * 24_000, 24_000, "floats or integers"),
        (b"no sound", None, "can be read"),
        ("nowhere.wav", None, "which is none"),
        (b"RIFF", 24_000, "know their sampling rate"),
    ],
)
def test_what_is_no_speech_is_refused(given_sound, rate, rule):
    with pytest.raises(ValueError, match=rule):
        read_sound("sound", given_sound, rate)
