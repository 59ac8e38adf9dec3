"""Pitch by autocorrelation (Boersma 1993), and sources in step with a sound, to train a vocoder with."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..modeling.vocoder_source import Excitation, pulse_train, to_samples
from ..stft import framed, hann_window

OCTAVE_COST = 0.02  # of correlation, a doubling of the period: a multiple of the period is as periodic
VOICED_FROM = 0.55  # correlation
QUIET_DB = -35.0  # to the loudest frame: not voiced below


def track_pitch(
    waveform: Float[Tensor, "batch samples"],
    n_fft: int,
    hop: int,
    sampling_rate_hz: int,
    lowest_hz: float,
    highest_hz: float,
) -> tuple[Float[Tensor, "batch frames"], Bool[Tensor, "batch frames"]]:
    """Pitch in Hz and whether there is voice, a frame for each whole hop.

    Where there is no voice, the pitch is what was most periodic.

    Args:
        n_fft: samples of a window, at least two of the longest periods.
        lowest_hz, highest_hz: what is looked for.

    Usage: `pitch_hz, voiced = track_pitch(waveform, 1200, 300, 24_000, 60.0, 550.0)`
    """
    window = hann_window(n_fft).to(waveform)
    frames = framed(waveform, n_fft, hop) * window
    frames = frames - frames.mean(-1, keepdim=True) * window / window.mean()
    of_window = autocorrelation(window)
    periodic = autocorrelation(frames)
    power = periodic[..., :1]
    periodic = periodic / power.clamp(min=1e-12) / (of_window / of_window[0])
    shortest, longest = math.floor(sampling_rate_hz / highest_hz), math.ceil(sampling_rate_hz / lowest_hz)
    lags = torch.arange(shortest, longest + 1, device=waveform.device)
    cost = OCTAVE_COST * torch.log2(lags / shortest)
    best = (periodic[..., shortest : longest + 1] - cost).argmax(-1, keepdim=True) + shortest
    left, middle, right = (periodic.gather(-1, best + step)[..., 0] for step in (-1, 0, 1))
    curvature = (left - 2 * middle + right).clamp(max=-1e-6)
    lag = best[..., 0] + (0.5 * (left - right) / curvature).clamp(-0.5, 0.5)  # the peak of a parabola
    loud = power[..., 0] > power.amax(1) * 10 ** (QUIET_DB / 10)
    return (sampling_rate_hz / lag).clamp(lowest_hz, highest_hz), (middle > VOICED_FROM) & loud


def autocorrelation(frames: Float[Tensor, "*rows samples"]) -> Float[Tensor, "*rows samples"]:
    """The sum of products with itself, at each lag."""
    size = frames.shape[-1]
    power = torch.fft.rfft(frames, n=2 * size).abs().square()
    return torch.fft.irfft(power)[..., :size]


def wrapped(angle: Tensor) -> Tensor:
    """Into (-pi, pi]."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def aligned_excitation(
    waveform: Float[Tensor, "batch samples"],
    pitch_hz: Float[Tensor, "batch frames"],
    voiced: Bool[Tensor, "batch frames"],
    n_fft: int,
    hop: int,
    sampling_rate_hz: int,
) -> Excitation:
    """Pulses in step with a sound: their fundamental has the phase of the sound's own at the middle of each frame.

    Usage: `vocoder(log_mel(waveform), aligned_excitation(waveform, pitch_hz, voiced, 1200, 300, 24_000))`
    """
    rate = to_samples(pitch_hz, hop)
    rolling = (rate.double() * (2 * math.pi / sampling_rate_hz)).cumsum(1)
    ahead = rolling[:, hop // 2 :: hop]
    times = (torch.arange(n_fft, device=waveform.device) - n_fft // 2) * (2 * math.pi / sampling_rate_hz)
    turning = torch.polar(hann_window(n_fft).to(pitch_hz).expand(*pitch_hz.shape, n_fft), -pitch_hz[..., None] * times)
    phase = (framed(waveform, n_fft, hop) * turning).sum(-1).angle()
    behind = wrapped(phase - ahead)
    places = torch.arange(voiced.shape[1], device=waveform.device).expand_as(voiced)
    last_voiced = torch.where(voiced, places, 0).cummax(1).values
    behind = behind.gather(1, last_voiced)
    steps = wrapped(behind.diff(dim=1, prepend=behind[:, :1] * 0))
    late = to_samples(steps.cumsum(1), hop)
    turned = torch.remainder(rolling + late, 2 * math.pi).float()
    return Excitation(pulse_train(turned, rate, sampling_rate_hz), voiced.float())
