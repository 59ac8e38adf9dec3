"""Short-time Fourier transform whose frames tile the sound: n * hop samples are n frames, and back.

Frame i is centred on the middle of samples [i * hop, (i + 1) * hop); beyond the ends there is silence. A spectrum is
relative to full scale: a sine of amplitude a has magnitude a at its frequency.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor


@lru_cache
def hann_window(n_fft: int) -> Float[Tensor, "n_fft"]:
    """The periodic Hann window."""
    return torch.hann_window(n_fft)


def stft(waveform: Float[Tensor, "batch samples"], n_fft: int, hop: int) -> Complex[Tensor, "batch bins frames"]:
    """The spectrum of sounds, n_fft / 2 + 1 bins for each whole hop of samples.

    Args:
        waveform: samples in [-1, 1].
        n_fft: samples in a Hann window, even; n_fft - hop must be even too.
        hop: samples between frames.

    Usage: `stft(waveform, n_fft=1200, hop=300).abs()`
    """
    window = hann_window(n_fft).to(waveform)
    padded = F.pad(waveform, ((n_fft - hop) // 2,) * 2)
    frames = padded.unfold(-1, n_fft, hop) * window
    return torch.fft.rfft(frames).transpose(1, 2) * (2 / window.sum())


def inverse_stft(spectrum: Complex[Tensor, "batch bins frames"], hop: int) -> Float[Tensor, "batch samples"]:
    """The sounds whose spectrum is nearest, frames * hop samples (Griffin and Lim 1984, equation 6).

    Inverts `stft` exactly. Bins above the given ones are zero.

    Usage: `inverse_stft(stft(waveform, 1200, 300), hop=300)`
    """
    n_fft, count = 2 * (spectrum.shape[1] - 1), spectrum.shape[2]
    window = hann_window(n_fft).to(spectrum.real)
    frames = torch.fft.irfft(spectrum.transpose(1, 2), n=n_fft) * window * (window.sum() / 2)
    squared = window.square().expand(1, count, n_fft)
    added, weight = (overlap_add(part, hop) for part in (frames, squared))
    edge = (n_fft - hop) // 2
    inside = slice(edge, edge + count * hop)
    return added[:, inside] / weight[:, inside]


def overlap_add(frames: Float[Tensor, "batch frames n_fft"], hop: int) -> Float[Tensor, "batch samples"]:
    """The sum of frames, each `hop` samples after the one before."""
    count, n_fft = frames.shape[1:]
    length = (count - 1) * hop + n_fft
    columns = frames.transpose(1, 2)
    return F.fold(columns, output_size=(1, length), kernel_size=(1, n_fft), stride=(1, hop))[:, 0, 0]
