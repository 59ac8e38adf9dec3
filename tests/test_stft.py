"""Frames tile the sound, the inverse inverts, and magnitudes are relative to full scale."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.stft import inverse_stft, stft


@given(frames=st.integers(1, 9), hop=st.integers(1, 5), overlap=st.sampled_from([2, 4, 8]), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_inverse_gives_the_sound_back(frames, hop, overlap, seed):
    hop *= 2
    waveform = torch.randn(2, frames * hop, generator=torch.Generator().manual_seed(seed)).double()
    spectrum = stft(waveform, overlap * hop, hop)
    assert spectrum.shape == (2, overlap * hop // 2 + 1, frames)
    torch.testing.assert_close(inverse_stft(spectrum, hop), waveform)


@pytest.mark.parametrize("amplitude", [0.01, 1.0])
def test_a_sine_has_its_amplitude(amplitude):
    waveform = amplitude * torch.sin(2 * math.pi * torch.arange(4800) / 20)[None]
    magnitudes = stft(waveform, 1200, 300).abs()[0, :, 8]
    assert magnitudes.argmax() == 60  # 1200 / 20
    torch.testing.assert_close(magnitudes[60], torch.tensor(amplitude), rtol=1e-3, atol=0)


def test_a_frame_is_centred_on_its_hop():
    waveform = torch.zeros(1, 3000)
    waveform[0, 5 * 300 + 150] = 1
    assert stft(waveform, 1200, 300).abs()[0].sum(0).argmax() == 5
