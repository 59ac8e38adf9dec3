"""The vocoder starts as an analytic one, reads no other row, and is saved as transformers and as Parquet."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoModel

from hf_unified_diffusion import ArrowQuantConfig, UnifiedVocoderConfig, UnifiedVocoderModel
from hf_unified_diffusion.codecs.audio_codec import AudioCodec
from hf_unified_diffusion.codecs.mel import MEAN, STD, log_mel
from hf_unified_diffusion.modeling.vocoder_source import excitation, pulse_train
from hf_unified_diffusion.quantization import num_weights
from hf_unified_diffusion.quantization.quantizer_arrowquant import quantize_model
from tests.codecs.sounds import vowel

TINY = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "pitch_hidden_size": 64, "pitch_layers": 1}


def tiny_vocoder() -> UnifiedVocoderModel:
    torch.manual_seed(0)
    return UnifiedVocoderModel(UnifiedVocoderConfig(**TINY)).eval()


def test_size_and_constants_are_those_of_the_codec():
    config = UnifiedVocoderConfig()
    assert (config.mel_mean, config.mel_std) == (MEAN, STD)
    with torch.device("meta"):
        assert 5e6 < num_weights(UnifiedVocoderModel(config)) < 6e6


def test_pulses_are_sums_of_cosines():
    t = torch.arange(2400) / 24_000
    for hz in (100.0, 237.0, 511.0):
        made = pulse_train(2 * math.pi * hz * t, torch.full_like(t, hz), 24_000)
        harmonics = torch.arange(1, int(12_000 / hz) + 1)[:, None]
        wanted = torch.cos(2 * math.pi * hz * harmonics * t).sum(0)
        torch.testing.assert_close(made, wanted, rtol=0, atol=0.02 * harmonics.max())


def test_source_has_the_pitch_asked_for():
    pitch = torch.full((1, 80), 200.0)
    pulses = excitation(pitch, torch.ones_like(pitch), 300, 24_000).pulses[0]
    spectrum = torch.fft.rfft(pulses).abs()
    harmonic = torch.arange(len(spectrum)) % 200 == 0
    harmonic[0] = False
    assert spectrum[harmonic].min() > 10 * spectrum[~harmonic][1:].max()


@pytest.mark.parametrize("voiced", [0.0, 1.0])
@torch.no_grad()
def test_fresh_vocoder_gives_the_wanted_log_mels(voiced):
    mels = log_mel(vowel(seconds=0.6))
    pitch = torch.full((1, mels.shape[2]), 132.0)
    made = tiny_vocoder()(mels, excitation(pitch, torch.full_like(pitch, voiced), 300, 24_000))
    assert made.shape == (1, 300 * mels.shape[2])
    distance = (log_mel(made) - mels).abs().mean()
    assert distance < 0.35
    assert distance < 0.3 * (mels - mels.mean()).abs().mean()


@torch.no_grad()
def test_codec_with_a_vocoder_is_repeatable_and_rows_are_apart():
    codec = AudioCodec(tiny_vocoder())
    tokens = codec.encode(torch.cat([vowel(0.4), vowel(0.4, pitch_hz=210), torch.zeros(1, 9600)]))
    together = codec.decode(tokens)
    assert together.shape == (3, 9600)
    torch.testing.assert_close(codec.decode(tokens), together, rtol=0, atol=0)
    for row in range(3):
        torch.testing.assert_close(codec.decode(tokens[row : row + 1])[0], together[row], rtol=1e-3, atol=1e-3)
    assert together[2].abs().max() < 1e-3  # silence stays silent


def test_every_weight_gets_a_gradient():
    vocoder = tiny_vocoder()
    mels = log_mel(vowel(seconds=0.2))
    logits, voice = vocoder.pitch_logits(mels)
    (vocoder(mels).square().mean() + logits.square().mean() + voice.square().mean()).backward()
    without = [name for name, p in vocoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


@torch.no_grad()
def test_saved_and_loaded_by_auto_classes(tmp_path):
    vocoder, mels = tiny_vocoder(), log_mel(vowel(seconds=0.2))
    vocoder.save_pretrained(tmp_path / "dense")
    loaded = AutoModel.from_pretrained(tmp_path / "dense")
    assert isinstance(loaded, UnifiedVocoderModel)
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "dense"), UnifiedVocoderConfig)
    torch.testing.assert_close(loaded(mels), vocoder(mels), rtol=0, atol=0)


@torch.no_grad()
def test_rounded_to_8_bits_it_sounds_the_same(tmp_path):
    vocoder, mels = tiny_vocoder(), log_mel(vowel(seconds=0.4))
    torch.nn.init.normal_(vocoder.head.weight, std=0.02)
    wanted = log_mel(vocoder(mels))
    quantize_model(vocoder, ArrowQuantConfig(8, 64, int8_modules=[], modules_to_not_convert=["envelope"]))
    vocoder.save_pretrained(tmp_path)
    assert (tmp_path / "model.arrowquant.parquet").exists()
    loaded = UnifiedVocoderModel.from_pretrained(tmp_path)
    assert (log_mel(loaded(mels)) - wanted).abs().mean() < 0.05


@pytest.mark.parametrize("mels", [torch.zeros(100, 4), torch.zeros(1, 80, 4), torch.zeros(1, 100, 0)])
def test_mels_are_checked(mels):
    with pytest.raises(ValueError, match="mels must be float"):
        tiny_vocoder()(mels)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"n_fft": 300}, "n_fft and hop"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"mel_std": 0.0}, "mel_std must be positive"),
        ({"num_pitches": 1}, "num_pitches"),
        ({"lowest_hz": 600.0}, "pitches must rise"),
    ],
)
def test_configs_are_checked(change, rule):
    with pytest.raises(StrictDataclassClassValidationError, match=rule):
        UnifiedVocoderConfig(**change)
