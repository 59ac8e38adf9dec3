"""Log-mel spectrograms of speech, and Griffin-Lim, which makes them sound without a network."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor
from transformers.audio_utils import mel_filter_bank

from ..stft import inverse_stft, stft

SAMPLING_RATE_HZ = 24_000
HOP = 300  # samples: 80 frames a second
N_FFT = 1_200  # samples: windows of 50 ms
NUM_BANDS = 100  # from 0 to 12 kHz
FLOOR = 1e-5  # -100 dB to a full-scale sine, below what 16 bits hold
MEAN, STD = -7.5, 2.4  # of log-mels of normalized speech, in nats


@lru_cache
def filter_bank() -> Float[Tensor, "bands bins"]:
    """Triangles of height 1, evenly spaced on Slaney's mel scale."""
    filters = mel_filter_bank(
        N_FFT // 2 + 1, NUM_BANDS, 0.0, SAMPLING_RATE_HZ / 2, SAMPLING_RATE_HZ, mel_scale="slaney"
    )
    return torch.from_numpy(filters.T).float().contiguous()


def log_mel(waveform: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch bands frames"]:
    """Normalized log-mels, (log(max(mel, FLOOR)) - MEAN) / STD, one frame for each whole `HOP` of samples.

    `mel` sums magnitudes of a band, where a full-scale sine has 1. Mean and variance over speech of the loudness that
    `codecs.sounds.read_sound` gives are about 0 and 1; digital silence is (log(FLOOR) - MEAN) / STD everywhere.

    Usage: `log_mel(waveform)  # 24 kHz, samples in [-1, 1]`
    """
    mel = filter_bank().to(waveform) @ stft(waveform, N_FFT, HOP).abs()
    return (mel.clamp(min=FLOOR).log() - MEAN) / STD


def magnitudes(mels: Float[Tensor, "batch bands frames"]) -> Float[Tensor, "batch bins frames"]:
    """Magnitudes whose normalized log-mels these nearly are: the least squares solution, cut at zero."""
    inverse = torch.linalg.pinv(filter_bank()).to(mels)
    return (inverse @ (mels * STD + MEAN).exp()).clamp(min=0)


def griffin_lim(
    mels: Float[Tensor, "batch bands frames"], iterations: int = 32, momentum: float = 0.99
) -> Float[Tensor, "batch samples"]:
    """Sounds with these log-mels, their phases found by alternating projections (Perraudin et al. 2013, fast).

    A yardstick for vocoders: needs no training, and sounds hollow.

    Args:
        mels: normalized, as `log_mel` gives them.
        iterations: projections onto what a sound can be.
        momentum: 0 is the method of Griffin and Lim (1984).

    Usage: `griffin_lim(log_mel(waveform))`
    """
    wanted = magnitudes(mels)
    angles = 2 * torch.pi * torch.rand(wanted.shape[1:], generator=Generator().manual_seed(0)).to(wanted)
    spectrum = torch.polar(wanted, angles.expand_as(wanted))
    before = torch.zeros_like(spectrum)
    for _ in range(iterations):
        projected = stft(inverse_stft(spectrum, HOP), N_FFT, HOP)
        ahead = projected + momentum * (projected - before)
        spectrum, before = torch.polar(wanted, ahead.angle()), projected
    return inverse_stft(spectrum, HOP)


def stacked(mels: Float[Tensor, "batch bands frames"], frames: int) -> Float[Tensor, "batch tokens width"]:
    """Every `frames` frames in a row as one token, the oldest first."""
    return mels.transpose(1, 2).reshape(len(mels), -1, frames * NUM_BANDS)


def unstacked(tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch bands frames"]:
    """The inverse of `stacked`."""
    return tokens.reshape(len(tokens), -1, NUM_BANDS).transpose(1, 2)


def padded_to(waveform: Float[Tensor, "batch samples"], multiple: int) -> Float[Tensor, "batch padded"]:
    """With silence behind, up to a multiple of samples."""
    return F.pad(waveform, (0, -waveform.shape[1] % multiple))
