"""What a voice is before the mouth shapes it: pulses at a pitch, and noise (a source-filter model)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

NOISE_LEVEL = 5.0  # about as much in a band as a pulse train of unit harmonics at 120 Hz
SMALLEST_SINE = 1e-3


@dataclass(frozen=True)
class Excitation:
    """Pulses, and where there is voice.

    Attributes:
        pulses: (batch, frames * hop) samples.
        voiced: (batch, frames) in [0, 1].
    """

    pulses: Float[Tensor, "batch samples"]
    voiced: Float[Tensor, "batch frames"]


def to_samples(frames: Float[Tensor, "batch frames"], hop: int) -> Float[Tensor, "batch samples"]:
    """Linear between the centres of frames."""
    return F.interpolate(frames[:, None], scale_factor=hop, mode="linear")[:, 0]


def pulse_train(
    phase: Float[Tensor, "batch samples"], pitch_hz: Float[Tensor, "batch samples"], sampling_rate_hz: int
) -> Float[Tensor, "batch samples"]:
    """The sum of cos(m * phase) over all harmonics m below half the sampling rate (Dirichlet's kernel).

    Args:
        phase: of the fundamental, in radians.
        pitch_hz: what the phase rises by in a second, over 2 pi; decides how many harmonics there are.

    Usage: `pulse_train(2 * torch.pi * 100 * t, torch.full_like(t, 100.0), 24_000)`
    """
    harmonics = (sampling_rate_hz / 2 / pitch_hz).floor()
    half = torch.remainder(phase, 2 * torch.pi) / 2
    sine = half.sin()
    ratio = ((2 * harmonics + 1) * half).sin() / torch.where(sine.abs() < SMALLEST_SINE, SMALLEST_SINE, sine)
    return torch.where(sine.abs() < SMALLEST_SINE, harmonics, ratio / 2 - 0.5)


def excitation(
    pitch_hz: Float[Tensor, "batch frames"], voiced: Float[Tensor, "batch frames"], hop: int, sampling_rate_hz: int
) -> Excitation:
    """Pulses whose rate follows the pitch of the frames.

    Usage: `excitation(pitch_hz, voiced, hop=300, sampling_rate_hz=24_000)`
    """
    rate = to_samples(pitch_hz, hop)
    # float64: a float32 sum over an hour of samples would lose the phase
    phase = torch.remainder((rate.double() * (2 * torch.pi / sampling_rate_hz)).cumsum(1), 2 * torch.pi)
    return Excitation(pulse_train(phase.float(), rate, sampling_rate_hz), voiced)


def noise_like(pulses: Float[Tensor, "batch samples"]) -> Float[Tensor, "1 samples"]:
    """White noise, the same for all rows and at each call: a sound depends on its log-mels alone."""
    return NOISE_LEVEL * torch.randn(1, pulses.shape[1], generator=Generator().manual_seed(0)).to(pulses)
