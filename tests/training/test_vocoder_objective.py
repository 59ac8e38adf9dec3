"""Pitches of known sounds are found, sources are in step with them, and training lowers the loss."""

import math

import pytest
import torch

from hf_unified_diffusion import UnifiedVocoderConfig, UnifiedVocoderModel
from hf_unified_diffusion.stft import stft
from hf_unified_diffusion.training.pitch_tracking import aligned_excitation, track_pitch
from hf_unified_diffusion.training.vocoder_objective import (
    VocoderLossConfig,
    VocoderObjective,
    pitch_loss,
    spectral_losses,
)
from tests.codecs.sounds import vowel

GRID = (1200, 300, 24_000)
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "pitch_hidden_size": 32, "pitch_layers": 1}


@pytest.mark.parametrize("pitch_hz", [80.0, 150.0, 320.0])
def test_pitch_is_found(pitch_hz):
    sound = vowel(seconds=0.6, pitch_hz=pitch_hz)
    found, voiced = track_pitch(sound, *GRID, 60.0, 550.0)
    times = (torch.arange(48) * 300 + 150) / 24_000
    wanted = pitch_hz + 40 * times  # the vowel's pitch rises
    inside = slice(3, -3)
    assert voiced[0, inside].float().mean() > 0.9
    right = ((found[0] / wanted).log2().abs() < 0.04)[inside][voiced[0, inside]]
    assert right.float().mean() > 0.9


def test_noise_and_silence_have_no_voice():
    noise = 0.1 * torch.randn(1, 24_000, generator=torch.Generator().manual_seed(0))
    assert track_pitch(noise, *GRID, 60.0, 550.0)[1].float().mean() < 0.1
    assert not track_pitch(torch.zeros(1, 24_000), *GRID, 60.0, 550.0)[1].any()


def test_aligned_pulses_have_the_phase_of_the_fundamental():
    sound = vowel(seconds=0.5, pitch_hz=140)
    pitch_hz, voiced = track_pitch(sound, *GRID, 60.0, 550.0)
    source = aligned_excitation(sound, pitch_hz, voiced, *GRID)
    x, y = stft(sound, 1200, 300)[0], stft(source.pulses, 1200, 300)[0]
    at = 7  # the bin of 140 Hz
    apart = (x[at] * y[at].conj()).angle()[voiced[0]][3:-3]
    assert apart.abs().mean() < 0.4


def test_spectral_losses_are_distances():
    sound, other = vowel(0.3), vowel(0.3, pitch_hz=200)
    assert all(loss < 1e-4 for loss in spectral_losses(sound, sound, 600, 150))
    forth, back = spectral_losses(sound, other, 600, 150), spectral_losses(other, sound, 600, 150)
    torch.testing.assert_close(torch.stack(forth), torch.stack(back))
    turned = spectral_losses(sound, -sound, 600, 150)
    assert turned[0] < 1e-4 < turned[2]  # only the complex distance knows of phases


def test_pitch_loss_of_a_uniform_guess_is_its_entropy():
    config = UnifiedVocoderConfig(**TINY)
    logits, voice = torch.zeros(1, 5, config.num_pitches), torch.zeros(1, 5)
    loss = pitch_loss(logits, voice, torch.full((1, 5), 123.0), torch.tensor([[1, 1, 0, 1, 0]]).bool(), config)
    torch.testing.assert_close(loss, torch.tensor(math.log(config.num_pitches) + math.log(2)))


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    objective = VocoderObjective(UnifiedVocoderModel(UnifiedVocoderConfig(**TINY)), VocoderLossConfig())
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    sounds = torch.cat([vowel(0.3), vowel(0.3, pitch_hz=210)])
    losses = []
    for _ in range(24):
        losses.append(objective(sounds)["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_of_losses_are_checked(weight):
    with pytest.raises(ValueError, match="mel_weight must be finite"):
        VocoderLossConfig(mel_weight=weight)
