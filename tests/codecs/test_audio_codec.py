"""Tokens are whole twentieths of a second, sounds come back, and rows do not see each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_unified_diffusion.codecs.audio_codec import AudioCodec
from hf_unified_diffusion.codecs.clock import audio_positions, phoneme_positions, spread_evenly
from hf_unified_diffusion.codecs.mel import FLOOR, MEAN, STD, log_mel, stacked, unstacked
from tests.codecs.sounds import vowel


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@given(samples=st.integers(1, 6000))
@settings(max_examples=20, deadline=None)
def test_lengths_are_whole_tokens(samples):
    codec = AudioCodec()
    tokens = codec.encode(0.1 * noise(2, samples))
    assert tokens.shape == (2, -(-samples // 1200), codec.width)
    assert tokens.dtype == torch.float32
    assert tokens.isfinite().all()


def test_constants_agree():
    codec = AudioCodec()
    assert (codec.sampling_rate_hz, codec.tokens_per_second, codec.width) == (24_000, 20, 400)
    assert codec.decode(codec.encode(vowel(seconds=0.2))).shape == (1, 4800)


def test_stacking_is_undone_and_keeps_time():
    mels = noise(2, 100, 8)
    tokens = stacked(mels, 4)
    torch.testing.assert_close(unstacked(tokens), mels, rtol=0, atol=0)
    torch.testing.assert_close(tokens[:, 1, 100:200], mels[:, :, 5], rtol=0, atol=0)


def test_padding_is_silence():
    codec, sound = AudioCodec(), vowel(seconds=0.33)
    silence = torch.zeros(1, -sound.shape[1] % 1200)
    torch.testing.assert_close(codec.encode(sound), codec.encode(torch.cat([sound, silence], dim=1)))
    floor = (torch.tensor(FLOOR).log() - MEAN) / STD
    torch.testing.assert_close(log_mel(torch.zeros(1, 1200)), floor.expand(1, 100, 4))


def test_rows_of_a_batch_do_not_see_each_other():
    codec = AudioCodec()
    sounds = torch.cat([vowel(0.4), 0.1 * noise(1, 9600), torch.zeros(1, 9600)])
    tokens = codec.encode(sounds)
    for row, sound in enumerate(sounds):
        alone = codec.encode(sound[None])
        torch.testing.assert_close(tokens[row], alone[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(codec.decode(tokens)[row], codec.decode(alone)[0], rtol=1e-3, atol=1e-3)


def test_louder_is_a_shift():
    codec, sound = AudioCodec(), vowel(seconds=0.4)
    louder, plain = codec.encode(2 * sound), codec.encode(sound)
    loud = plain > (torch.tensor(FLOOR).log() - MEAN) / STD + 0.1
    torch.testing.assert_close(louder[loud], plain[loud] + torch.log(torch.tensor(2.0)) / STD, rtol=1e-3, atol=1e-3)


def test_resynthesis_is_nearer_than_noise_and_than_no_phases():
    codec, sound = AudioCodec(), vowel(seconds=0.6)
    wanted = log_mel(sound)
    distance = (log_mel(codec.decode(codec.encode(sound))) - wanted).abs().mean()
    as_loud = noise(*sound.shape) * sound.std()
    assert distance < 0.3 * (log_mel(as_loud) - wanted).abs().mean()
    assert distance < 0.3


def test_a_vocoder_gets_the_log_mels():
    class Loudness(nn.Module):
        def forward(self, mels):
            return mels.mean(1).repeat_interleave(300, dim=1)

    sound = vowel(seconds=0.2)
    decoded = AudioCodec(Loudness()).decode(AudioCodec().encode(sound))
    torch.testing.assert_close(decoded, log_mel(sound).mean(1).repeat_interleave(300, dim=1).clamp(-1, 1))


@pytest.mark.parametrize("waveform", [torch.zeros(1200), torch.zeros(1, 0), torch.zeros(1, 1200, dtype=torch.int16)])
def test_waveforms_are_float_rows(waveform):
    with pytest.raises(ValueError, match="waveform must be float"):
        AudioCodec().encode(waveform)


@pytest.mark.parametrize("tokens", [torch.zeros(3, 400), torch.zeros(1, 0, 400), torch.zeros(1, 3, 100)])
def test_tokens_are_float_rows(tokens):
    with pytest.raises(ValueError, match="tokens must be float"):
        AudioCodec().decode(tokens)


@given(tokens=st.integers(1, 60), phonemes=st.integers(1, 60), start=st.floats(0, 500))
@settings(max_examples=30, deadline=None)
def test_sound_and_phonemes_share_the_clock(tokens, phonemes, start):
    sound, spoken = audio_positions(tokens, start), phoneme_positions(spread_evenly(phonemes, tokens), start)
    assert sound.shape == (tokens, 3) and spoken.shape == (phonemes, 3)
    assert (sound == sound[:, :1]).all() and (spoken == spoken[:, :1]).all()
    torch.testing.assert_close(sound[:, 0], start + torch.arange(tokens))
    assert start <= spoken.min() and spoken.max() <= start + tokens
    torch.testing.assert_close(spoken[:, 0].mean(), torch.tensor(start + tokens / 2), rtol=1e-4, atol=1e-4)
