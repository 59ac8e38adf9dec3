"""Modulations are a transform without loss; the filter acts on what a network made and is saved with its vocoder."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_unified_diffusion import ArrowQuantConfig, UnifiedVocoderModel
from hf_unified_diffusion.codecs.audio_codec import AudioCodec
from hf_unified_diffusion.codecs.mel import log_mel
from hf_unified_diffusion.modeling.modulation_filter import (
    ModulationFilter,
    cosine_transform,
    from_modulations,
    modulations,
)
from hf_unified_diffusion.quantization.quantizer_arrowquant import quantize_model
from tests.codecs.sounds import vowel
from tests.modeling.test_vocoder import tiny_vocoder


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filtering_vocoder() -> UnifiedVocoderModel:
    """A vocoder whose postfilter changes what it reads."""
    vocoder = tiny_vocoder()
    vocoder.set_postfilter(0.5 + noise(100, 8).abs())
    return vocoder


@given(size=st.integers(1, 40))
def test_the_cosine_transform_is_orthonormal(size):
    matrix = cosine_transform(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), rtol=0, atol=1e-5)
    assert torch.allclose(matrix[0], torch.full((size,), size**-0.5))  # the mean


@given(bands=st.integers(1, 12), frames=st.integers(1, 70), half=st.integers(1, 12), seed=st.integers(0, 99))
def test_modulations_lose_nothing(bands, frames, half, seed):
    mels = noise(2, bands, frames, seed=seed)
    found = modulations(mels, 2 * half)
    assert found.shape[2:] == (bands, 2 * half)
    torch.testing.assert_close(from_modulations(found, frames), mels, rtol=0, atol=1e-4)
    torch.testing.assert_close(ModulationFilter(bands, 2 * half)(mels), mels, rtol=0, atol=1e-4)


def test_power_is_that_of_the_sound():
    mels = noise(1, 20, 64)
    inside = torch.nn.functional.pad(mels, (16, 16))  # beyond its ends the sound stays as it is, zero here
    assert modulations(inside, 8).square().sum() == pytest.approx(float(mels.square().sum()), rel=1e-5)


def test_a_gain_acts_on_its_modulation_alone():
    mels = cosine_transform(100)[5][None, :, None] * torch.ones(1, 100, 40)  # five half waves of the spectrum, constant
    postfilter = ModulationFilter(100, 8)
    postfilter.gains[6:] = 0
    torch.testing.assert_close(postfilter(mels), mels, rtol=0, atol=1e-5)
    postfilter.gains[5] = 3
    torch.testing.assert_close(postfilter(mels), 3 * mels, rtol=0, atol=1e-5)
    postfilter.gains[5] = 0
    assert postfilter(mels).abs().max() < 1e-5


@torch.no_grad()
def test_rows_are_apart():
    postfilter, mels = filtering_vocoder().postfilter, noise(2, 100, 13)
    together = postfilter(mels)
    assert together.shape == mels.shape and (together - mels).abs().mean() > 0.1
    torch.testing.assert_close(postfilter(mels[1:]), together[1:])


@torch.no_grad()
def test_only_tokens_that_a_network_made_are_refined():
    codec, plain = AudioCodec(filtering_vocoder()), AudioCodec(tiny_vocoder())
    tokens = codec.encode(vowel(seconds=0.4))
    assert torch.equal(codec.decode(tokens), plain.decode(tokens))
    assert not torch.allclose(codec.decode(tokens, refine=True), plain.decode(tokens), atol=1e-3)
    assert torch.equal(plain.decode(tokens, refine=True), plain.decode(tokens))
    assert torch.equal(AudioCodec().decode(tokens, refine=True), AudioCodec().decode(tokens))  # Griffin-Lim


@torch.no_grad()
def test_it_is_saved_and_loaded_with_the_vocoder(tmp_path):
    vocoder, mels = filtering_vocoder(), log_mel(vowel(seconds=0.4))
    wanted = vocoder.refined(mels)
    vocoder.save_pretrained(tmp_path / "dense")
    quantize_model(vocoder, ArrowQuantConfig(8, 64, int8_modules=[], modules_to_not_convert=["envelope"]))
    vocoder.save_pretrained(tmp_path / "rounded")
    for name in ("dense", "rounded"):
        loaded = UnifiedVocoderModel.from_pretrained(tmp_path / name)
        torch.testing.assert_close(loaded.refined(mels), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("gains", "rule"),
    [
        (torch.ones(80, 8), r"gains must be of \(100, an even number of frames\)"),
        (torch.ones(100, 7), r"gains must be of \(100, an even number of frames\)"),
        (torch.ones(100, 0), r"gains must be of \(100, an even number of frames\)"),
        (-torch.ones(100, 8), "gains must be finite and 0 or more"),
        (torch.full((100, 8), float("nan")), "gains must be finite and 0 or more"),
    ],
)
def test_gains_are_checked(gains, rule):
    vocoder = tiny_vocoder()
    with pytest.raises(ValueError, match=rule):
        vocoder.set_postfilter(gains)
    assert vocoder.postfilter is None and vocoder.config.postfilter_frames == 0
